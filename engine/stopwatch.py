"""Where a tick's time goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Adds up seconds by stage. On CUDA it marks the stream and waits for nothing until it is read."""

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._marks: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Times the block as `stage`."""
        if self._cuda:
            begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begun.record()
            yield
            ended.record()
            self._marks.append((stage, begun, ended))
        else:
            start = time.perf_counter()
            yield
            self._seconds[stage] += time.perf_counter() - start

    def read(self) -> dict[str, float]:
        """The seconds of each stage since the last reading. On CUDA, call it when the work is done."""
        for stage, begun, ended in self._marks:
            self._seconds[stage] += begun.elapsed_time(ended) / 1000
        seconds = dict(self._seconds)
        self._marks.clear()
        self._seconds.clear()
        return seconds
