"""Download of a checkpoint from the Hugging Face hub, before any process is started."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from engine.errors import CheckpointError
from engine.memory import size

NEEDED = ("*.json", "*.safetensors", "*.txt", "*.jinja")  # patterns of the files that serving needs
SPARE_BYTES = 2 * 10**9  # disk space that a download leaves free

Report = Callable[[str], None]


def fetch_checkpoint(name: str, report: Report, api: Any = None) -> Path:
    """Download the missing files of the checkpoint `name` into the hub's cache; return its folder.

    An interrupted download is resumed. Raises `CheckpointError` if the download fails or the disk is too small.
    """
    cache = Path(constants.HF_HUB_CACHE)
    try:
        missing = _missing_bytes(name, api or HfApi())
        if missing:
            free = shutil.disk_usage(_existing(cache)).free
            if missing + SPARE_BYTES > free:
                raise CheckpointError(
                    f"the checkpoint {name} needs {size(missing)} more, but {cache} has {size(free)} free: make room, "
                    "or set HF_HOME to a folder on a larger disk"
                )
            report(f"{name}: downloading {size(missing)} into {cache}")
        return Path(snapshot_download(name, allow_patterns=list(NEEDED)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise CheckpointError(f"the checkpoint {name} cannot be downloaded: {error}") from error


def _missing_bytes(name: str, api: Any) -> int:
    """Return the size of the needed files that are not in the cache; 0 if the hub cannot be reached."""
    try:
        files = api.model_info(name, files_metadata=True).siblings
    except (HfHubHTTPError, OSError):
        return 0  # without a network, `snapshot_download` uses the cache, or its error names the missing file
    needed = (file for file in files if any(Path(file.rfilename).match(pattern) for pattern in NEEDED))
    return sum(file.size or 0 for file in needed if not isinstance(try_to_load_from_cache(name, file.rfilename), str))


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.parents) if parent.exists())
