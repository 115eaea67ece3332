"""The capacity model: its queue in cases with known results, Erlang's formula, and the command."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
import pytest

from benchmarks.capacity import (
    CapacityError,
    Measured,
    TickTimes,
    latencies,
    max_conversations,
    max_offered,
    read_measured,
    refused_share,
)
from commands.capacity import H200
from tests.conftest import sca

TICK_S = 0.32


def constant(*pairs: tuple[int, float], outside_s: float = 0.0) -> TickTimes:
    """Return tick times without variation, from pairs of conversations and milliseconds."""
    return TickTimes.of([Measured(count, ms, ms, 0.0) for count, ms in pairs], outside_s)


def test_single_microphone_does_not_wait():
    found = latencies(constant((1, 40.0), outside_s=0.007), 1, TICK_S)
    np.testing.assert_allclose(found, 0.0005 + 0.040 + 0.007, atol=1e-9)


def test_two_microphones_wait_up_to_one_batch():
    found = latencies(constant((1, 40.0), (2, 40.0)), 2, TICK_S)
    assert found.min() == pytest.approx(0.0405)
    assert 0.0405 < found.max() <= 0.0810 + 1e-9, "the previous batch has just begun"


def test_slow_engine_falls_behind():
    assert latencies(constant((1, 330.0)), 1, TICK_S).max() > 2
    assert max_conversations(constant((1, 330.0)), TICK_S, 0.32, 8) == 0
    assert max_conversations(constant((1, 10.0), (8, 10.0)), TICK_S, 0.32, 8) == 8, "at most the slots"
    assert 8 < max_conversations(constant((1, 20.0), (8, 160.0)), TICK_S, 0.32, 64) <= 16, "16 of 20 ms fill a tick"


def test_drawn_times_have_the_measured_percentiles():
    times = TickTimes.of([Measured(1, 20.0, 40.0, 0.0)])
    drawn = [times.draw(1, np.random.default_rng(seed)) for seed in range(4000)]
    np.testing.assert_allclose(np.percentile(drawn, [50, 99]), [0.020, 0.040], rtol=0.08)
    assert constant((1, 20.0), (2, 30.0)).draw(4, np.random.default_rng(0)) == pytest.approx(0.060), "in proportion"


@pytest.mark.parametrize(("offered", "slots"), [(1, 1), (10, 15), (100, 117)])
def test_refused_share_is_erlangs_formula(offered, slots):
    """Erlang B in its closed form: the weight of the full state divided by the weights of all states."""
    weights = [Fraction(offered**occupied, math.factorial(occupied)) for occupied in range(slots + 1)]
    refused = float(weights[-1] / sum(weights))
    assert refused_share(offered, slots) == pytest.approx(refused)
    assert max_offered(slots, refused) == pytest.approx(offered)


def test_command_prints_the_capacity_of_replicas(tmp_path):
    rows = [
        {"what": "triton", "conversations": count, "p50_ms": 30.0 + count, "p99_ms": 60.0 + count, "tick_ms": 320,
         "stages_ms": {"mel": 1.0, "code2wav": 4.0, "Triton": 3.0, "transport": 1.0, "text": 9.0}}
        for count in (1, 4)
    ]  # fmt: skip
    served = tmp_path / "triton.json"
    served.write_text(json.dumps({"machine": "here", "date": "today", "command": "bench", "rows": rows}))
    run = sca("capacity", "--served", served, "--replicas", "1,2", "--slots", "8")
    assert run.returncode == 0, run.stderr
    for text in ("9.0 ms outside of the engine", "320 ms", "2 replicas", "refused in that hour, by Erlang's formula"):
        assert text in run.stderr
    missing = sca("capacity", tmp_path / "none.json")
    assert missing.returncode == 1
    assert "none.json" in missing.stderr
    slow = sca("capacity", "--p99-ms", "10")
    assert slow.returncode == 1
    assert "one conversation's ticks exceed 10 ms at the 99th percentile" in slow.stderr


def test_h200_figures_are_those_of_the_report():
    measured, tick_ms, origin = read_measured(H200)
    assert (tick_ms, [row.conversations for row in measured]) == (320, [1, 8, 32, 64])
    assert "NVIDIA H200" in origin
    text = (H200.parent / "RESULTS.md").read_text()
    for engine, code2wav, row in zip((34.7, 48.8, 80.3, 98.2), (15.2, 21.3, 61.3, 112.6), measured, strict=True):
        assert row.p50_ms == pytest.approx(engine + code2wav)
        assert f"{engine} ms" in text
        assert str(code2wav) in text


def test_json_without_rows_is_refused(tmp_path):
    (tmp_path / "empty.json").write_text('{"rows": []}')
    with pytest.raises(CapacityError, match=r"expected the JSON of a benchmark .* got .*empty\.json"):
        read_measured(tmp_path / "empty.json")
