"""Store of exported graphs: one folder per graph, named by a digest of everything that the graph is made from.

A setting that a graph does not depend on (a port, a limit, the detection of turns) does not change the digest. Several
build folders, and several processes at once, may share one store.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from config.build import BuildSettings

ROOT = Path(__file__).parent.parent
COMMON_CODE = ("requirements.lock", "export/stateful_module.py", "export/onnx_config.py", "export/onnx_stage.py")
MAX_KEPT_SHARED = 8  # graphs of one name that a shared store keeps; a build folder's own store keeps one

Report = Callable[[str], None]


class GraphStore:
    """A folder with the exported graphs and the random checkpoint."""

    def __init__(self, folder: Path, report: Report, max_kept: int = 1):
        """Open a store. `report` is called before each step, with the step; `max_kept`: graphs of one name to keep."""
        self.folder = folder
        self._report, self._max_kept = report, max_kept

    @classmethod
    def of(cls, settings: BuildSettings, build: Path, report: Report) -> GraphStore:
        """Return the store that `build.graphs` names; by default the folder `graphs` in the build folder."""
        if settings.graphs:
            return cls(Path(settings.graphs).resolve(), report, MAX_KEPT_SHARED)
        return cls(build / "graphs", report)

    def get(
        self, name: str, step: str, code: Iterable[str], follows_from: Mapping[str, Any], make: Callable[[Path], str]
    ) -> Path:
        """Return the graph's folder; if there is none, have `make` fill it. `make` returns the result of its check.

        The graph follows from the files `code`, below the project's root, and from `follows_from`, which is JSON.
        """
        digest = hashlib.sha256(json.dumps(follows_from, sort_keys=True).encode())
        for file in (*COMMON_CODE, *code):
            digest.update((ROOT / file).read_bytes())
        folder = self.folder / f"{name}-{digest.hexdigest()[:16]}"
        with self.locked(name):
            if folder.is_dir():
                os.utime(folder)  # time of the latest use
                self._report(f"{name}: as exported before")
                return folder
            self._report(f"{name}: {step}")
            staging = self.folder / f"{name}.new"
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            found = make(staging)
            for older in self._latest_first(name)[self._max_kept - 1 :]:
                shutil.rmtree(older)
            staging.rename(folder)
        self._report(f"{name}: checked, {found}")
        return folder

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Hold the lock on what the store has under `name`: one process exports, the others wait for the result."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _latest_first(self, name: str) -> list[Path]:
        folders = self.folder.glob(f"{name}-*")
        return sorted(folders, key=lambda folder: folder.stat().st_mtime_ns, reverse=True)
