"""The steps of a tick, run as they are written or, on CUDA, as graphs captured beforehand.

A step reads and writes tensors that keep their place in memory, and never looks at a value: that is what lets it be
captured. A captured step is one launch in place of thousands.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Protocol, TypeVar

import torch

from engine.stage_timer import StageTimer

RUNS_BEFORE_CAPTURE = 2  # libraries choose kernels and take their working memory in them


class StepBatch(Protocol):
    """A batch that a step works on."""

    @property
    def variant(self) -> Hashable:
        """What makes a step another computation: the number of rows, and whatever else has a graph of its own."""

    def set_padding(self) -> None:
        """Makes every row padding."""


B = TypeVar("B", bound=StepBatch)


class GraphRunner:
    """Runs steps, each by the graph of its batch's variant where there is one, and times them by stage."""

    def __init__(self, timer: StageTimer) -> None:
        self.timer = timer
        self._graphs: dict[tuple[str, Hashable], torch.cuda.CUDAGraph] = {}
        self._pool: Any = None
        self._stream: Any = None  # one for all captures: libraries keep working memory for each

    def __call__(self, stage: str, step: Callable[[B], None], batch: B) -> None:
        """Replays the graph of stage and variant, or runs the step where there is none."""
        with self.timer(stage):
            graph = self._graphs.get((stage, batch.variant))
            if graph is None:
                step(batch)
            else:
                graph.replay()

    def capture(self, stage: str, step: Callable[[B], None], batch: B, enabled: bool) -> None:
        """Runs the step on padding alone, then captures it if `enabled`."""
        batch.set_padding()
        self._stream = self._stream or torch.cuda.Stream()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(RUNS_BEFORE_CAPTURE):
                step(batch)
                batch.set_padding()
        torch.cuda.current_stream().wait_stream(self._stream)
        if not enabled:
            return
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            step(batch)
        self._pool = graph.pool()  # graphs of one engine never run at once: they share their working memory
        self._graphs[stage, batch.variant] = graph
