"""The benchmarks run and count correctly; no test asserts a duration."""

from __future__ import annotations

import json
import re
import sys

import pytest

from benchmarks import turn, turn_bridge
from benchmarks.engine import bench_engine
from benchmarks.report import show
from benchmarks.row import Row
from config.settings import INPUT_HZ
from tests.bench import ENGINE_STAGES, SERVED_STAGES, ports_of, rows_of
from tests.conftest import Served, sca
from tests.sound import speech


def test_bridge_load_measures_every_protocol(tmp_path):
    run = sca("bench", "bridge-load", "--conversations", 2, "--idle", 3, "--seconds", 1.6, "--build", tmp_path)
    assert run.returncode == 0, run.stderr
    rows = rows_of(tmp_path, "bridge-load")
    assert [(row["what"], row["conversations"]) for row in rows] == [
        ("Triton's gRPC, 3 idle", 2),
        ("/ws/pcm16, 3 idle", 2),
        ("/v1/realtime, 3 idle", 2),
        ("/v1/realtime/calls, 3 idle", 2),
    ]
    assert rows[0]["ticks"] == rows[1]["ticks"] == 10
    assert all(row["ticks"] >= 10 for row in rows)  # more if the machine paused and the bridge padded a tick
    assert all(0 < row["p50_ms"] <= row["p99_ms"] for row in rows)


def test_churn_measures_the_memory_of_the_bridge(tmp_path):
    run = sca("bench", "churn", "--conversations", 2, "--minutes", 0.3, "--build", tmp_path)
    assert run.returncode == 0, run.stderr
    samples = json.loads((tmp_path / "bench" / "churn.json").read_text())
    assert len(samples) == 2
    assert 0 < samples[0]["conversations"] < samples[1]["conversations"]
    assert all(sample["memory_bytes"] > 10_000_000 for sample in samples)


def test_engine_is_measured_next_to_transformers(tmp_path):
    run = sca(
        "bench", "engine", "--conversations", "1,2", "--ticks", 3, "--baseline", "transformers", "--build", tmp_path
    )
    assert run.returncode == 0, run.stderr
    rows = rows_of(tmp_path, "engine")
    assert [(row["what"], row["conversations"], row["ticks"]) for row in rows] == [
        ("engine", 1, 3),
        ("engine", 2, 3),
        ("transformers", 1, 3),
    ]
    stages = rows[0]["stages_ms"]
    assert set(stages) == ENGINE_STAGES
    mean_ms = rows[0]["mean_ms"]
    assert 0.5 * mean_ms < sum(stages.values()) < 1.1 * mean_ms, "means of the same ticks"
    assert rows[0]["memory_bytes"] > 2**20


def test_profile_names_the_slowest_operations(tmp_path):
    run = sca("bench", "engine", "--conversations", "1", "--ticks", 1, "--profile", "--age-s", 30, "--build", tmp_path)
    assert run.returncode == 0, run.stderr
    assert "aten::" in run.stdout
    assert "Self CPU time total" in run.stdout


def test_stage_of_some_rows_has_its_own_column(checkpoint, settings, tmp_path, capsys, monkeypatch):
    """Conversations that evict ticks during the measurement, and younger ones that evict none."""
    short = settings.with_values(engine={"context_s": 5})
    rows = [*bench_engine(checkpoint, settings, [1], ticks=3), *bench_engine(checkpoint, short, [2], ticks=3, age_s=5)]
    assert [set(row.stages_ms) - ENGINE_STAGES for row in rows] == [set(), {"evict"}]
    monkeypatch.setattr(sys, "argv", ["commands", "bench", "engine"])
    show(rows, tmp_path / "rows.json")
    lines = capsys.readouterr().out.split("stages of a tick")[1].splitlines()
    header, young, sliding = (
        [cell.strip() for cell in re.split("[┃│]", line)] for line in lines if re.match("[┃│]", line)
    )
    column = header.index("evict")
    assert young[column] == "0.0"
    assert sliding[column] == f"{rows[1].stages_ms['evict']:.1f}"
    assert sliding[header.index("talker")] == f"{rows[1].stages_ms['talker']:.1f}"


@pytest.mark.parametrize("what", ["triton", "bridge"])
def test_server_is_measured_at_the_pace_of_microphones(served: Served, tmp_path, what):
    run = sca("bench", what, "--conversations", "2", "--seconds", 3.2, "--build", tmp_path, **ports_of(served))
    assert run.returncode == 0, run.stderr
    (row,) = rows_of(tmp_path, what)
    assert (row["what"], row["conversations"], row["ticks"]) == (what, 2, 20)
    assert row["paced"], "in real time"
    assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
    stages = row["stages_ms"]
    assert set(stages) == SERVED_STAGES
    assert all(ms > 0 for stage, ms in stages.items() if stage not in ("Triton", "transport")), "remainders"
    assert 0.5 * row["mean_ms"] < sum(stages.values()) < 2 * row["mean_ms"], "the stages add up to the tick"
    assert row["memory_bytes"] > 2**20


def test_impossible_measurement_is_refused_with_the_reason(served: Served, tmp_path):
    run = sca("bench", "triton", "--conversations", "9", "--build", tmp_path, **ports_of(served))
    assert run.returncode == 1
    assert (
        "--conversations: expected at most 4, the number of slots, got 9: serve with SCA_ENGINE_SLOTS=9" in run.stderr
    )
    run = sca("bench", "bridge", "--build", tmp_path, SCA_TRITON_METRICS_PORT="1")
    assert "no Triton answers at 127.0.0.1:1" in run.stderr
    run = sca("bench", "perf-analyzer", "--conversations", "1", "--build", tmp_path, **ports_of(served))
    assert "the following arguments are required: --wav" in run.stderr


def test_row_counts_deadline_misses_and_factors():
    row = Row.of("x", 4, 320, [0.1, 0.2, 0.3, 0.4])
    assert (row.ticks, row.deadline_misses) == (4, 1)
    assert row.real_time_factor == pytest.approx(0.25 / 0.32)
    assert row.audio_s_per_s == pytest.approx(4 * 0.32 / 0.25)
    assert Row.of("x", 4, 320, [0.1, 0.2], paced=True).audio_s_per_s == 4, "no more than the pace"


def test_end_of_a_turn_is_measured(checkpoint, settings, monkeypatch):
    """The tick at the end of a turn prefills and decodes."""
    monkeypatch.setattr(turn, "SPOKEN_S", (0.6, 2.0))
    rows = list(turn.bench_turn(checkpoint, settings, [3], turns=5))
    assert [row.what for row in rows] == ["end of turn", "end of 5 s", "end of 60 s", "first turn", "tenth turn"]
    assert rows[0].conversations == 3
    assert rows[0].ticks >= 5
    assert all(rows[0].stages_ms[stage] > 0 for stage in ("prefill", "text", "talker", "code predictor"))


def test_end_of_a_turn_is_measured_over_websocket(served_turns: Served, monkeypatch):
    """Two bridges are measured one after the other, here the same one. The bridge counts the ticks."""
    monkeypatch.setattr(turn_bridge, "SPOKEN_S", (0.6, 2.0))
    monkeypatch.setattr(turn_bridge, "ROUNDS", 1)
    settings = served_turns.settings
    rows = turn_bridge.bench_turn_bridge(settings, [2], seconds=6, other_port=settings.bridge.port)
    names = [name for port in ("", f", port {settings.bridge.port}") for name in (f"end of turn{port}", f"tick{port}")]
    assert [row.what for row in rows] == names
    assert all(row.ticks >= 1 and row.p50_ms > 0 for row in rows)
    assert rows[1].ticks >= 2 * 6000 / settings.audio.tick_ms, "every tick of both conversations"
    assert rows[1].deadline_misses <= rows[1].ticks


def test_users_of_the_benchmark_send_the_speech_passed_in(served_turns: Served):
    question = speech()[: 2 * INPUT_HZ]
    turns, _ = turn_bridge.bench_turn_bridge(served_turns.settings, [1], seconds=4, speech=question)
    assert turns.ticks >= 1


def test_histogram_is_interpolated_as_by_prometheus():
    """100 ticks, 90 of up to 100 ms and 8 of up to 200 ms; the last two are beyond the last limit."""
    row = turn_bridge._histogram_row("ticks", 1, 150, {0.1: 90.0, 0.2: 98.0, float("inf"): 100.0})
    assert (row.ticks, row.deadline_misses) == (100, 6)
    assert (row.p50_ms, row.p95_ms, row.p99_ms) == pytest.approx((55.6, 162.5, 200), rel=1e-2)
