"""The engine's figures among Triton's own, for Prometheus: port 8002, names that begin with sca_."""

from __future__ import annotations

from collections import Counter
from typing import Any

import triton_python_backend_utils as pb_utils

from engine.engine import Engine


class EngineMetrics:
    """What the engine holds, and where its ticks' time goes."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self._told: Counter[str] = Counter()
        memory = engine.memory
        self._families = {  # kept: a metric lives no longer than its family
            "memory": _gauge("sca_memory_bytes", "Memory that the engine takes, by what for"),
            "context": _gauge("sca_context_seconds", "Seconds of conversation that a slot holds"),
            "slots": _gauge("sca_slots", "Conversations that the engine can hold and holds"),
            "stages": pb_utils.MetricFamily(
                name="sca_stage_seconds_total",
                description="Seconds of computation by stage of a tick",
                kind=pb_utils.MetricFamily.COUNTER,
            ),
        }
        parts = {
            "weights": memory.weights,
            "slots": memory.slots * memory.slot,
            "system prompts kept": memory.openings,
            "one slot": memory.slot,
            "one second of context": memory.second,
        }
        self._constants = [self._metric("memory", part, count) for part, count in parts.items()]
        self._constants += [self._metric("context", "", memory.context_s), self._metric("slots", "total", memory.slots)]
        self._taken = self._metric("slots", "taken", 0)
        self._stages: dict[str, Any] = {}

    def update(self) -> None:
        """Tells what has changed since the last tick."""
        self._taken.set(self._engine.open_conversations)
        now = Counter(self._engine.stage_seconds)
        for stage, seconds in (now - self._told).items():
            if stage not in self._stages:
                self._stages[stage] = self._families["stages"].Metric(labels={"stage": stage})
            self._stages[stage].increment(seconds)
        self._told = now

    def _metric(self, family: str, what: str, value: float) -> Any:
        metric = self._families[family].Metric(labels={"what": what} if what else {})
        metric.set(value)
        return metric


def _gauge(name: str, description: str) -> Any:
    return pb_utils.MetricFamily(name=name, description=description, kind=pb_utils.MetricFamily.GAUGE)
