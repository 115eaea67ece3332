"""Where a tick's time goes behind Triton, from the counters that it exports."""

from __future__ import annotations

import re
import urllib.request
from dataclasses import dataclass

from config import Settings

SAMPLE = re.compile(r"^(\w+)(?:\{(.*?)\})? (\S+)$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="(.*?)"')
ENSEMBLE, MEL, ENGINE, CODE2WAV = "duplex", "mel_frontend", "thinker_talker", "code2wav"
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Counters:
    """Triton's metrics at a moment: a value by name and label."""

    values: dict[tuple[str, str], float]

    @classmethod
    def read(cls, settings: Settings) -> Counters:
        """From Triton's metrics endpoint. Raises `OSError` when it does not answer."""
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
        """What the engine takes of memory."""
        parts = ("weights", "slots", "system prompts kept")
        return int(sum(self.values["sca_memory_bytes", part] for part in parts))

    @property
    def slots(self) -> int:
        """How many conversations the engine holds at once."""
        return int(self.values["sca_slots", "total"])

    @property
    def slots_taken(self) -> int:
        """How many it holds now."""
        return int(self.values["sca_slots", "taken"])

    def stages_since(self, before: Counters, latency_ms: float) -> dict[str, float]:
        """Mean ms of each stage of a tick; `latency_ms` is the mean that the clients saw.

        The engine's stages are of one execution, in which many conversations share them. `queue` is the wait for the
        engine, `Triton` what is left of the ensemble's time, `transport` what is left of the clients'.
        """

        def grown(name: str, label: str) -> float:
            return self.values.get((name, label), 0.0) - before.values.get((name, label), 0.0)

        def mean(kind: str, model: str) -> float:
            """ms of a request."""
            count = grown("nv_inference_count", model)
            return grown(f"nv_inference_{kind}_duration_us", model) / count / 1000 if count else 0.0

        executions = grown("nv_inference_exec_count", ENGINE)
        names = [label for name, label in self.values if name == "sca_stage_seconds_total"]
        seconds = {stage: grown("sca_stage_seconds_total", stage) for stage in sorted(names, key=_place)}
        engine = {stage: spent / executions * 1000 for stage, spent in seconds.items() if spent}
        mel, code2wav = mean("compute_infer", MEL), mean("compute_infer", CODE2WAV)
        queue, whole = mean("queue", ENGINE), mean("request", ENSEMBLE)
        computed = mel + sum(engine.values()) + code2wav
        return {
            "mel": mel,
            **engine,
            "code2wav": code2wav,
            "queue": queue,
            "Triton": whole - computed - queue,
            "transport": latency_ms - whole,
        }


def _place(stage: str) -> int:
    """The order of a tick's stages."""
    known = ["prompt", "evict", "vad", "encoder", "prefill", "text", "talker", "code predictor"]
    return known.index(stage) if stage in known else len(known)
