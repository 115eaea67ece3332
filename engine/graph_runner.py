"""Execution of the steps of a tick: eagerly or, on CUDA, as graphs captured at start-up.

A step can be captured because its tensors keep their addresses and the host never reads their values. A captured step
is one launch where the eager step is thousands.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Protocol, TypeVar

import torch

from engine.stage_timer import StageTimer

RUNS_BEFORE_CAPTURE = 2  # in these runs, libraries choose kernels and allocate their workspace


class StepBatch(Protocol):
    """The tensors that a step reads and writes."""

    @property
    def variant(self) -> Hashable:
        """Key of the graph: the number of rows, and anything else that changes the computation."""

    def set_padding(self) -> None:
        """Turn every row into padding."""


B = TypeVar("B", bound=StepBatch)


class GraphRunner:
    """Runner of steps: replays the graph of a stage and variant, if there is one, and times each stage."""

    def __init__(self, timer: StageTimer) -> None:
        self.timer = timer
        self._graphs: dict[tuple[str, Hashable], torch.cuda.CUDAGraph] = {}
        self._pool: Any = None
        self._stream: Any = None  # shared by all captures: libraries hold a workspace for each stream

    def __call__(self, stage: str, step: Callable[[B], None], batch: B) -> None:
        """Replay the graph of the stage and variant, or run the step if none was captured."""
        with self.timer(stage):
            graph = self._graphs.get((stage, batch.variant))
            if graph is None:
                step(batch)
            else:
                graph.replay()

    def capture(self, stage: str, step: Callable[[B], None], batch: B, enabled: bool) -> None:
        """Run the step on padding rows only, then capture it if `enabled`."""
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
        self._pool = graph.pool()  # graphs of one engine never run concurrently, so they share working memory
        self._graphs[stage, batch.variant] = graph
