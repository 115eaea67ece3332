"""Metrics of the engine for Prometheus, on Triton's metrics port, with names that begin with sca_."""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb_utils

from engine.engine import Engine
from engine.tick_load import BUCKETS_S


class EngineMetrics:
    """Gauges and counters of the engine: memory, slots, duration of ticks by stage, late ticks."""

    def __init__(self, engine: Engine[Any]):
        self._engine = engine
        self._totals: dict[tuple[str, str], float] = {}  # latest totals of the counters
        self._metrics: dict[tuple[str, str], Any] = {}
        gauge, counter = pb_utils.MetricFamily.GAUGE, pb_utils.MetricFamily.COUNTER
        families = {  # name: kind, label, description
            "sca_memory_bytes": (gauge, "what", "Memory of the engine by use"),
            "sca_context_seconds": (gauge, "", "Seconds of conversation that the context of a slot holds"),
            "sca_slots": (gauge, "what", "Slots of the engine: total and taken"),
            "sca_stage_seconds_total": (counter, "stage", "Computation time of ticks in seconds, by stage"),
            "sca_tick_seconds_bucket": (counter, "le", "Ticks that took at most le seconds"),
            "sca_tick_seconds_sum": (counter, "", "Sum of the duration of ticks in seconds"),
            "sca_tick_seconds_count": (counter, "", "Number of ticks"),
            "sca_late_ticks_total": (counter, "", "Ticks that took longer than the duration of their audio"),
            "sca_events_total": (counter, "what", "Rare events by kind"),
        }
        self._labels = {name: label for name, (_, label, _) in families.items()}
        self._families = {  # references are kept because a metric is deleted with its family
            name: pb_utils.MetricFamily(name=name, description=text, kind=kind)
            for name, (kind, _, text) in families.items()
        }
        memory = engine.memory
        for what, count in (
            ("weights", memory.weights),
            ("slots", memory.slots * memory.slot),
            ("system prompts kept", memory.prompts),
            ("one slot", memory.slot),
            ("one second of context", memory.second),
        ):
            self._metric("sca_memory_bytes", what).set(count)
        self._metric("sca_context_seconds").set(memory.context_s)
        self._metric("sca_slots", "total").set(memory.slots)
        self.update()

    def update(self) -> None:
        """Update every metric from the engine's state, after a tick."""
        engine, load = self._engine, self._engine.load
        self._metric("sca_slots", "taken").set(engine.open_conversations)
        for stage, seconds in engine.stage_seconds.items():
            self._count("sca_stage_seconds_total", stage, seconds)
        below = 0
        for bucket in (*BUCKETS_S, float("inf")):
            below += load.histogram[bucket]
            self._count("sca_tick_seconds_bucket", "+Inf" if bucket == float("inf") else f"{bucket:g}", below)
        self._count("sca_tick_seconds_sum", "", load.total_s)
        self._count("sca_tick_seconds_count", "", load.count)
        self._count("sca_late_ticks_total", "", load.late)
        for what, count in engine.timer.counts.items():
            self._count("sca_events_total", what, count)

    def _count(self, family: str, label: str, total: float) -> None:
        """Increment a counter to a total."""
        before = self._totals.get((family, label), 0.0)
        self._metric(family, label).increment(total - before)
        self._totals[family, label] = total

    def _metric(self, family: str, label: str = "") -> Any:
        if (family, label) not in self._metrics:
            labels = {self._labels[family]: label} if label else {}
            self._metrics[family, label] = self._families[family].Metric(labels=labels)
        return self._metrics[family, label]
