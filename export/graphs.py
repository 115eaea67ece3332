"""Exported graphs, kept in the build folder under a digest of all that each follows from.

A setting that a graph does not depend on (a port, a limit, how turns are told) finds it made.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
COMMON_CODE = ("requirements.lock", "export/stateful_module.py", "export/onnx_config.py", "export/onnx_stage.py")

Report = Callable[[str], None]


class GraphCache:
    """A folder a graph."""

    def __init__(self, folder: Path, report: Report):
        """`report` is told each step before it begins."""
        self._folder, self._report = folder, report

    def get(
        self, name: str, step: str, code: Iterable[str], follows_from: Mapping[str, Any], make: Callable[[Path], str]
    ) -> Path:
        """The graph's folder. Where it is not made yet, `make` fills it and returns what its check found.

        It follows from the files `code`, below the project's root, and from `follows_from`, which is JSON.
        """
        digest = hashlib.sha256(json.dumps(follows_from, sort_keys=True).encode())
        for file in (*COMMON_CODE, *code):
            digest.update((ROOT / file).read_bytes())
        folder = self._folder / f"{name}-{digest.hexdigest()[:16]}"
        if folder.is_dir():
            self._report(f"{name}: as exported before")
            return folder
        self._report(f"{name}: {step}")
        staging = self._folder / f"{name}.new"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        found = make(staging)
        for older in self._folder.glob(f"{name}-*"):  # no two are of use at once
            shutil.rmtree(older)
        staging.rename(folder)
        self._report(f"{name}: checked, {found}")
        return folder
