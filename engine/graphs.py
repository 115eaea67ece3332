"""The steps of a tick, run as they are written or, on CUDA, as graphs captured beforehand.

A step reads and writes tensors that keep their place in memory, and never looks at a value: that is what lets it be
captured. A captured step is one launch in place of thousands.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch

Step = Callable[[Any], None]  # its argument: the batch, tensors that keep their place
Variant = Hashable  # a step's name, rows of the batch, and what else makes it another computation
REHEARSALS = 2  # runs before a capture, in which libraries choose kernels and take their working memory


class Steps:
    """Runs steps, each by the graph of its variant where there is one."""

    def __init__(self) -> None:
        self._graphs: dict[Variant, torch.cuda.CUDAGraph] = {}
        self._pool: Any = None
        self._stream: Any = None  # one for all captures: libraries keep working memory for each

    def __call__(self, variant: Variant, step: Step, batch: Any) -> None:
        """Replays the variant's graph, or runs the step where there is none."""
        graph = self._graphs.get(variant)
        if graph is None:
            step(batch)
        else:
            graph.replay()

    def rehearse(self, variant: Variant, step: Step, batch: Any, capture: bool) -> None:
        """Runs the step for batches of this size, and captures it. Every row of `batch` must be padding."""
        self._stream = self._stream or torch.cuda.Stream()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(REHEARSALS):
                step(batch)
        torch.cuda.current_stream().wait_stream(self._stream)
        if not capture:
            return
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            step(batch)
        self._pool = graph.pool()  # graphs of one engine never run at once: they share their working memory
        self._graphs[variant] = graph
