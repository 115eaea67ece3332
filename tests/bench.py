"""Helpers of the tests of `./sca bench`: a benchmark's rows, and the ports of a running server as settings."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import Served

PNG = b"\x89PNG"
ENGINE_STAGES = {"encoder", "prefill", "text", "talker", "code predictor"}
SERVED_STAGES = {"mel", *ENGINE_STAGES, "code2wav", "queue", "Triton", "transport"}


def rows_of(build: Path, what: str) -> list[dict]:
    assert (build / "bench" / f"{what}.png").read_bytes().startswith(PNG)
    return json.loads((build / "bench" / f"{what}.json").read_text())["rows"]


def ports_of(served: Served) -> dict[str, str]:
    triton_settings, bridge = served.settings.triton, served.settings.bridge
    ports = {name: str(getattr(triton_settings, f"{name}_port")) for name in ("grpc", "http", "metrics")}
    return {
        **{f"SCA_TRITON_{name.upper()}_PORT": port for name, port in ports.items()},
        "SCA_BRIDGE_PORT": str(bridge.port),
    }
