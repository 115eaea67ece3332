"""The capacity model: its queue where the answer is known, its day against Erlang's formula, its command."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
import pytest

from benchmarks import day
from benchmarks.capacity import CapacityError, Measured, TickTimes, latencies, max_conversations, read_measured
from commands.capacity import H200
from tests.test_commands import sca

TICK_S = 0.32


def steady(*pairs: tuple[int, float], outside_s: float = 0.0) -> TickTimes:
    """Ticks that never vary: conversations and milliseconds."""
    return TickTimes.of([Measured(count, ms, ms, 0.0) for count, ms in pairs], outside_s)


def test_one_microphone_waits_for_nothing():
    found = latencies(steady((1, 40.0), outside_s=0.007), 1, TICK_S)
    np.testing.assert_allclose(found, 0.0005 + 0.040 + 0.007, atol=1e-9)


def test_two_microphones_wait_for_each_other_at_most_a_batch():
    found = latencies(steady((1, 40.0), (2, 40.0)), 2, TICK_S)
    assert found.min() == pytest.approx(0.0405)
    assert 0.0405 < found.max() <= 0.0810 + 1e-9, "just missed the batch before"


def test_an_engine_that_is_too_slow_falls_behind():
    assert latencies(steady((1, 330.0)), 1, TICK_S).max() > 2
    assert max_conversations(steady((1, 330.0)), TICK_S, 0.32, 8) == 0
    assert max_conversations(steady((1, 10.0), (8, 10.0)), TICK_S, 0.32, 8) == 8, "never more than slots"
    assert 8 < max_conversations(steady((1, 20.0), (8, 160.0)), TICK_S, 0.32, 64) <= 16, "16 of 20 ms fill a tick"


def test_spread_is_what_was_measured():
    times = TickTimes.of([Measured(1, 20.0, 40.0, 0.0)])
    drawn = [times.draw(1, np.random.default_rng(seed)) for seed in range(4000)]
    np.testing.assert_allclose(np.percentile(drawn, [50, 99]), [0.020, 0.040], rtol=0.08)
    assert steady((1, 20.0), (2, 30.0)).draw(4, np.random.default_rng(0)) == pytest.approx(0.060), "in proportion"


@pytest.mark.parametrize(("offered", "places"), [(1, 1), (10, 15), (100, 117)])
def test_erlangs_formula(offered, places):
    """As it is written: the weight of a full system among those of all states."""
    weights = [Fraction(offered**held, math.factorial(held)) for held in range(places + 1)]
    refused = float(weights[-1] / sum(weights))
    assert day.refused_share(offered, places) == pytest.approx(refused)
    assert day.max_offered(places, refused) == pytest.approx(offered)


@pytest.mark.parametrize("replicas", [1, 4])
def test_a_day_without_a_night_is_as_the_formula(monkeypatch, replicas):
    """Arrivals to the fewest: many replicas refuse as one of all their places."""
    monkeypatch.setattr(day, "HOURS", (1.0,) * 200)
    found = day.simulate(offered=16, minutes=2, replicas=replicas, places=20 // replicas)
    assert found.refused / found.arrived == pytest.approx(day.refused_share(16, 20), rel=0.06)
    assert found.busiest == 20
    assert sum(found.at_once.values()) == pytest.approx(1)
    assert max(found.at_once) == 20 // replicas
    held = np.mean([at_once for at_once, _ in found.hours])
    assert held == pytest.approx(16 * (1 - day.refused_share(16, 20)), rel=0.02)


def test_the_command_tells_what_a_cluster_holds(tmp_path):
    rows = [
        {"what": "triton", "conversations": count, "p50_ms": 30.0 + count, "p99_ms": 60.0 + count, "tick_ms": 320,
         "stages_ms": {"mel": 1.0, "code2wav": 4.0, "Triton": 3.0, "transport": 1.0, "text": 9.0}}
        for count in (1, 4)
    ]  # fmt: skip
    served = tmp_path / "triton.json"
    served.write_text(json.dumps({"machine": "here", "date": "today", "command": "bench", "rows": rows}))
    run = sca("capacity", "--served", served, "--replicas", "1,2", "--slots", "8", "--build", tmp_path)
    assert run.returncode == 0, run.stderr
    for words in ("9.0 ms outside of the engine", "320 ms", "2 replicas", "conversations of the simulated day"):
        assert words in run.stderr
    assert (tmp_path / "bench" / "capacity.png").stat().st_size > 20_000
    none = sca("capacity", tmp_path / "none.json")
    assert none.returncode == 1
    assert "none.json holds no rows of a bench" in none.stderr
    slow = sca("capacity", "--p99-ms", "10", "--build", tmp_path)
    assert "not even one conversation's ticks stay within 10 ms" in slow.stderr


def test_the_h200s_figures_are_those_of_the_report():
    measured, tick_ms, by = read_measured(H200)
    assert (tick_ms, [row.conversations for row in measured]) == (320, [1, 8, 32, 64])
    assert "NVIDIA H200" in by
    text = (H200.parent / "RESULTS.md").read_text()
    for engine, code2wav, row in zip((34.7, 48.8, 80.3, 98.2), (15.2, 21.3, 61.3, 112.6), measured, strict=True):
        assert row.p50_ms == pytest.approx(engine + code2wav)
        assert f"{engine} ms" in text
        assert str(code2wav) in text


def test_what_is_no_bench_is_refused(tmp_path):
    (tmp_path / "empty.json").write_text('{"rows": []}')
    with pytest.raises(CapacityError, match="holds no rows of a bench"):
        read_measured(tmp_path / "empty.json")
