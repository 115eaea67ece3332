"""Download of a checkpoint from the Hugging Face hub, before any process is started."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from engine.checkpoint_files import PATTERNS, check_checkpoint, check_config, read_object
from engine.errors import CheckpointError
from engine.memory import size

SMALL = tuple(pattern for pattern in PATTERNS if pattern != "*.safetensors")
SPARE_BYTES = 2 * 10**9  # disk space that a download leaves free
TIMEOUT_S = 10.0  # timeout of the hub's list of files

Report = Callable[[str], None]


def fetch_checkpoint(name: str, report: Report, api: Any = None) -> Path:
    """Download the missing files of the checkpoint `name` into the hub's cache; return its folder.

    The config is read before the weights are downloaded. An interrupted download is resumed. If the hub cannot be used,
    a complete copy in the cache is served. Raises `CheckpointError` if there is none or if the disk is too small.
    """
    try:
        return _download(name, report, api or HfApi())
    except HFValidationError:
        raise CheckpointError(f"no checkpoint at {name}, expected a folder with config.json or a hub name") from None
    except CheckpointError:
        raise
    except Exception as error:  # the hub's library raises errors of many unrelated types, TypeError for a login page
        return _from_cache(name, report, error)


def cached_folder(name: str) -> Path | None:
    """Return the folder of the checkpoint `name` in the hub's cache, complete or not; None if there is none.

    Raises `HFValidationError` for a text that cannot be a name.
    """
    file = try_to_load_from_cache(name, "config.json")
    return Path(file).parent if isinstance(file, str) else None


def _download(name: str, report: Report, api: Any) -> Path:
    files = api.model_info(name, files_metadata=True, timeout=TIMEOUT_S).siblings
    folder = Path(snapshot_download(name, allow_patterns=list(SMALL)))
    expected = f"no checkpoint at {name}, expected a hub repository with config.json"
    check_config(name, read_object(folder / "config.json", expected))
    needed = (file for file in files if any(Path(file.rfilename).match(pattern) for pattern in PATTERNS))
    missing = sum(file.size or 0 for file in needed if not (folder / file.rfilename).exists())
    cache = Path(constants.HF_HUB_CACHE)
    if missing:
        free = shutil.disk_usage(_existing(cache)).free
        if missing + SPARE_BYTES > free:
            raise CheckpointError(
                f"the checkpoint {name} needs {size(missing)} more, but {cache} has {size(free)} free: make room, "
                "or set HF_HOME to a folder on a larger disk"
            )
        report(f"{name}: downloading {size(missing)} into {cache}")
    return Path(snapshot_download(name, allow_patterns=list(PATTERNS)))


def _from_cache(name: str, report: Report, error: Exception) -> Path:
    """Return the folder of a complete copy in the cache; raise `CheckpointError` if there is none."""
    reason = " ".join(str(error).split()) or type(error).__name__
    remedy = (
        "check the network, HF_ENDPOINT and HF_TOKEN and start again, or copy the checkpoint from another machine and "
        "set SCA_QWEN_MODEL_ID to its folder"
    )
    folder = cached_folder(name)
    if folder is None:
        raise CheckpointError(
            f"the checkpoint {name} cannot be downloaded ({reason}), and {constants.HF_HUB_CACHE} has no copy: {remedy}"
        ) from error
    try:
        check_checkpoint(folder)
    except CheckpointError as incomplete:
        raise CheckpointError(
            f"the checkpoint {name} cannot be downloaded ({reason}), and its copy in the cache cannot be served "
            f"({incomplete}): {remedy}"
        ) from error
    report(f"{name}: the hub cannot be used ({reason[:200]}); starting from the copy in the cache")
    return folder


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.parents) if parent.exists())
