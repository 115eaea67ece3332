"""Triton's exported counters, and the mean time of each stage of a tick that follows from them."""

from __future__ import annotations

import re
import urllib.request
from dataclasses import dataclass

from config import Settings

SAMPLE = re.compile(r"^(\w+)(?:\{(.*?)\})? (\S+)$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="(.*?)"')
ENSEMBLE, MEL, ENGINE, CODE2WAV = "duplex", "mel_frontend", "thinker_talker", "code2wav"
STAGES = ("prompt", "evict", "vad", "encoder", "prefill", "text", "talker", "code predictor")  # order in a tick
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # requests without a proxy


@dataclass(frozen=True)
class Counters:
    """Triton's metrics at one time: a value for each name and label."""

    values: dict[tuple[str, str], float]

    @classmethod
    def read(cls, settings: Settings) -> Counters:
        """Request Triton's metrics. Raises `OSError` if the endpoint does not respond."""
        url = f"http://{settings.triton.host}:{settings.triton.metrics_port}/metrics"
        with DIRECT.open(url, timeout=5) as response:
            text = response.read().decode()
        values = {}
        for name, labels, value in SAMPLE.findall(text):
            known = dict(LABEL.findall(labels))
            values[name, known.get("model") or known.get("stage") or known.get("what") or ""] = float(value)
        return cls(values)

    @property
    def engine_bytes(self) -> int:
        """Memory of the engine in bytes: weights, slots and kept system prompts."""
        return int(sum(self.values["sca_memory_bytes", part] for part in ("weights", "slots", "system prompts kept")))

    @property
    def slots(self) -> int:
        """Number of conversations that the engine can hold at once."""
        return int(self.values["sca_slots", "total"])

    @property
    def slots_taken(self) -> int:
        """Number of conversations that the engine holds."""
        return int(self.values["sca_slots", "taken"])

    def stages_since(self, before: Counters, latency_ms: float) -> dict[str, float]:
        """Return the mean ms of each stage of a tick; `latency_ms` is the mean that the clients measured.

        The engine's stages are of one execution, which many conversations share. `queue` is the wait for the engine,
        `Triton` the rest of the ensemble's time, `transport` the rest of the clients' time.
        """

        def increase(name: str, label: str) -> float:
            return self.values.get((name, label), 0.0) - before.values.get((name, label), 0.0)

        def mean_ms(kind: str, model: str) -> float:
            count = increase("nv_inference_count", model)
            return increase(f"nv_inference_{kind}_duration_us", model) / count / 1000 if count else 0.0

        executions = increase("nv_inference_exec_count", ENGINE)
        names = [label for name, label in self.values if name == "sca_stage_seconds_total"]
        seconds = {stage: increase("sca_stage_seconds_total", stage) for stage in sorted(names, key=_order)}
        engine = {stage: spent / executions * 1000 for stage, spent in seconds.items() if spent}
        mel, code2wav = mean_ms("compute_infer", MEL), mean_ms("compute_infer", CODE2WAV)
        queue, ensemble = mean_ms("queue", ENGINE), mean_ms("request", ENSEMBLE)
        computed = mel + sum(engine.values()) + code2wav
        return {
            "mel": mel,
            **engine,
            "code2wav": code2wav,
            "queue": queue,
            "Triton": ensemble - computed - queue,
            "transport": latency_ms - ensemble,
        }


def _order(stage: str) -> int:
    return STAGES.index(stage) if stage in STAGES else len(STAGES)
