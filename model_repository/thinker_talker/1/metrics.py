"""The engine's metrics among Triton's, for Prometheus: port 8002, names that begin with sca_."""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb_utils

from engine.engine import Engine
from engine.tick_load import BUCKETS_S


class EngineMetrics:
    """Metrics of the engine: slots, memory, and the time of its ticks by stage."""

    def __init__(self, engine: Engine[Any]):
        self._engine = engine
        self._totals: dict[tuple[str, str], float] = {}  # totals of counters at the latest update
        self._metrics: dict[tuple[str, str], Any] = {}
        gauge, counter = pb_utils.MetricFamily.GAUGE, pb_utils.MetricFamily.COUNTER
        families = {  # name: (kind, label, description)
            "sca_memory_bytes": (gauge, "what", "Memory of the engine, by use"),
            "sca_context_seconds": (gauge, "", "Seconds of conversation in the context of a slot"),
            "sca_slots": (gauge, "what", "Slots of the engine in total, and slots that are taken"),
            "sca_stage_seconds_total": (counter, "stage", "Seconds of computation by stage of a tick"),
            "sca_tick_seconds_bucket": (counter, "le", "Ticks of at most le seconds"),
            "sca_tick_seconds_sum": (counter, "", "Seconds of computation of all ticks"),
            "sca_tick_seconds_count": (counter, "", "Ticks"),
            "sca_late_ticks_total": (counter, "", "Ticks that took longer than the duration of their audio"),
            "sca_events_total": (counter, "what", "Rare events of the engine, by kind"),
        }
        self._labels = {name: label for name, (_, label, _) in families.items()}
        self._families = {  # kept here, because a metric needs its family
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
        """Update the metrics that have changed since the last tick."""
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
