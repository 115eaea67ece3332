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
        self.running = False
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Times the block as `stage`; on CUDA it waits for the work to be done, before and after."""
        if not self.running:
            yield
            return
        begun = _now()
        yield
        self.seconds[stage] += _now() - begun


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
