"""The steps of a tick, run as they are written or, on CUDA, as graphs captured beforehand.

A step reads and writes tensors that keep their place in memory, and never looks at a value: that is what lets it be
captured. A captured step is one launch in place of thousands.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from engine.batch import Batch
from engine.stopwatch import Stopwatch

Step = Callable[[Batch], None]
REHEARSALS = 2  # runs before a capture, in which libraries choose kernels and take their working memory


class Steps:
    """Runs steps by name and times them."""

    def __init__(self, stopwatch: Stopwatch):
        self._stopwatch = stopwatch
        self._graphs: dict[tuple[str, int, bool], torch.cuda.CUDAGraph] = {}
        self._pool: Any = None

    def __call__(self, name: str, step: Step, batch: Batch) -> None:
        """Replays the step's graph for a batch of this size, or runs the step where there is none."""
        graph = self._graphs.get((name, batch.rows, batch.sampled))
        with self._stopwatch(name):
            if graph is None:
                step(batch)
            else:
                graph.replay()

    def capture(self, name: str, step: Step, batch: Batch) -> None:
        """Captures the step for batches of this size. Every row of `batch` must be padding: the step will run."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(REHEARSALS):
                step(batch)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            step(batch)
        self._pool = graph.pool()  # graphs of one engine never run at once: they share their working memory
        self._graphs[name, batch.rows, batch.sampled] = graph
