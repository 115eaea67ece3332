"""Where a tick's time goes; off unless somebody measures."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Adds up seconds by stage. Switched off it costs nothing that could be measured."""

    def __init__(self) -> None:
        self._running = False
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def start(self) -> None:
        """Begins from nothing."""
        self._running = True
        self._seconds.clear()

    def stop(self) -> dict[str, float]:
        """The seconds of each stage since the start."""
        self._running = False
        return dict(self._seconds)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Times the block as `stage`; on CUDA it waits for the work to be done, before and after."""
        if not self._running:
            yield
            return
        begun = _now()
        yield
        self._seconds[stage] += _now() - begun


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
