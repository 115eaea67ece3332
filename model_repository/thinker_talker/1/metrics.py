"""The engine's figures among Triton's own, for Prometheus: port 8002, names that begin with sca_."""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb_utils

from engine.engine import Engine
from engine.tick_load import BUCKETS_S


class EngineMetrics:
    """What the engine holds, where its ticks' time goes, and whether they are in time."""

    def __init__(self, engine: Engine[Any]):
        self._engine = engine
        self._totals: dict[tuple[str, str], float] = {}  # of counters, as told last
        self._metrics: dict[tuple[str, str], Any] = {}
        gauge, counter = pb_utils.MetricFamily.GAUGE, pb_utils.MetricFamily.COUNTER
        families = {  # name: its kind, its label, and what it is
            "sca_memory_bytes": (gauge, "what", "Memory that the engine takes, by what for"),
            "sca_context_seconds": (gauge, "", "Seconds of conversation that a slot holds"),
            "sca_slots": (gauge, "what", "Conversations that the engine can hold and holds"),
            "sca_stage_seconds_total": (counter, "stage", "Seconds of computation by stage of a tick"),
            "sca_tick_seconds_bucket": (counter, "le", "Ticks that took no longer than le seconds"),
            "sca_tick_seconds_sum": (counter, "", "Seconds that all ticks took"),
            "sca_tick_seconds_count": (counter, "", "Ticks"),
            "sca_late_ticks_total": (counter, "", "Ticks that took longer than the sound that they were for"),
            "sca_events_total": (counter, "what", "What is rare, counted"),
        }
        self._labels = {name: label for name, (_, label, _) in families.items()}
        self._families = {  # kept: a metric lives no longer than its family
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
        """Tells what has changed since the last tick."""
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
        """Brings a counter to a total."""
        before = self._totals.get((family, label), 0.0)
        self._metric(family, label).increment(total - before)
        self._totals[family, label] = total

    def _metric(self, family: str, label: str = "") -> Any:
        if (family, label) not in self._metrics:
            labels = {self._labels[family]: label} if label else {}
            self._metrics[family, label] = self._families[family].Metric(labels=labels)
        return self._metrics[family, label]
