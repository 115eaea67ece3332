"""The benchmarks run and count right; how fast anything is, no test asserts."""

from __future__ import annotations

import base64
import json
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import tritonclient.grpc as triton

from benchmarks import floor, full_size, turn, turn_bridge
from benchmarks.engine import bench_engine
from benchmarks.floor import bandwidth, tick_bytes
from benchmarks.full_size import full_checkpoint, full_config
from benchmarks.perf_analyzer import PerfAnalyzerError, input_data, read_wav, row_of
from benchmarks.report import show
from benchmarks.row import Row
from config.settings import INPUT_HZ
from engine.checkpoint import Checkpoint, load_checkpoint
from engine.engine import Engine
from engine.tick import TickOutput
from engine.turn.chat_template import ChatTemplate
from export.byte_tokenizer import make_tokenizer
from export.random_checkpoint import random_config
from export.weights import load_code2wav
from tests.conftest import BUILD, Served
from tests.sound import speech
from tests.test_commands import sca

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
    assert all(row["ticks"] >= 10 for row in rows)  # more where the machine paused, and the bridge filled up a tick
    assert all(0 < row["p50_ms"] <= row["p99_ms"] for row in rows)


def test_its_memory_while_conversations_come_and_go(tmp_path):
    run = sca("bench", "churn", "--conversations", 2, "--minutes", 0.3, "--build", tmp_path)
    assert run.returncode == 0, run.stderr
    samples = json.loads((tmp_path / "bench" / "churn.json").read_text())
    assert len(samples) == 2
    assert 0 < samples[0]["conversations"] < samples[1]["conversations"]
    assert all(sample["memory_bytes"] > 10_000_000 for sample in samples)


def test_the_engine_beside_transformers(tmp_path):
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
    assert 0.5 * rows[0]["p50_ms"] < sum(stages.values()) < 2 * rows[0]["p50_ms"], "the stages are most of the tick"
    assert rows[0]["memory_bytes"] > 2**20


def test_a_profile_names_the_slowest_parts(tmp_path):
    run = sca("bench", "engine", "--conversations", "1", "--ticks", 1, "--profile", "--age-s", 30, "--build", tmp_path)
    assert run.returncode == 0, run.stderr
    assert "aten::" in run.stdout
    assert "Self CPU time total" in run.stdout


def test_a_stage_that_only_some_rows_have_keeps_its_column(checkpoint, settings, tmp_path, capsys, monkeypatch):
    """Conversations that slide while they are measured, and others that are too young to."""
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
def test_a_server_at_the_pace_of_microphones(served: Served, tmp_path, what):
    begun = time.monotonic()
    run = sca("bench", what, "--conversations", "2", "--seconds", 3.2, "--build", tmp_path, **ports_of(served))
    assert run.returncode == 0, run.stderr
    assert time.monotonic() - begun > 3.2, "in real time"
    (row,) = rows_of(tmp_path, what)
    assert (row["what"], row["conversations"], row["ticks"]) == (what, 2, 20)
    assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
    stages = row["stages_ms"]
    assert set(stages) == SERVED_STAGES
    assert all(ms > 0 for stage, ms in stages.items() if stage not in ("Triton", "transport")), "those are what is left"
    mean = sum(stages.values())
    assert 0.5 * row["p50_ms"] < mean < 2 * row["p50_ms"], "they add up to the tick"
    assert row["memory_bytes"] > 2**20


def test_perf_analyzer_runs_the_real_server(served: Served, tmp_path, pcm):
    """NVIDIA's own binary: real time, one sequence a session, and the sound that any client gets."""
    wav = tmp_path / "said.wav"
    soundfile.write(wav, pcm, 16000, subtype="PCM_16")
    build = BUILD / "perf_analyzer_test"  # keeps the download
    run = sca(
        *("bench", "perf-analyzer", "--conversations", "1,3", "--seconds", 3.2, "--wav", wav, "--build", build),
        **ports_of(served),
    )
    assert run.returncode == 0, run.stderr
    rows = rows_of(build, "perf-analyzer")
    assert [(row["conversations"], row["ticks"]) for row in rows] == [(1, 10), (3, 30)]
    assert set(rows[1]["stages_ms"]) == SERVED_STAGES

    profile = json.loads((build / "perf_analyzer" / "3.json").read_text())["experiments"][0]
    sequences: dict[int, list] = {}
    for request in sorted(profile["requests"], key=lambda request: request["timestamp"]):
        sequences.setdefault(request["sequence_id"], []).append(request)
    client = triton.InferenceServerClient(served.triton_grpc)
    for requests in sequences.values():
        gaps = np.diff([request["timestamp"] for request in requests]) / 1e6
        assert abs(np.median(gaps) - 320) < 16, "a tick's length"
    for tick, request in enumerate(next(iter(sequences.values()))):
        sound = pcm[None, tick * 5120 : (tick + 1) * 5120]
        assert request["request_inputs"]["AUDIO_IN"] == sound[0].tolist()
        audio = triton.InferInput("AUDIO_IN", [1, 5120], "INT16")
        audio.set_data_from_numpy(sound)
        answer = client.infer("duplex", [audio], sequence_id=9, sequence_start=tick == 0, sequence_end=tick == 13)
        heard = np.array(request["response_outputs"][0]["AUDIO_OUT"])
        assert np.abs(heard - answer.as_numpy("AUDIO_OUT")[0]).max() <= 1, "a step of PCM16: batches differ by that"


def test_perf_analyzers_record_becomes_a_row():
    """Two conversations of six ticks; the second session's last answer comes 400 ms after its tick was due.

    The tick was sent late by 370 of them: a tool that falls behind its own schedule does not hide it.
    """
    requests = []
    for tick in range(6):
        for session in range(2):
            due, late = int(1e9 + session * 1e6 + tick * 320e6), (session, tick) == (1, 5)
            sent, answered = due + int(370e6 * late), due + int(400e6 if late else 50e6)
            requests.append({"sequence_id": session, "timestamp": sent, "response_timestamps": [answered]})
    row = row_of({"requests": requests}, 2, 320)
    assert (row.conversations, row.ticks, row.deadline_misses) == (2, 4, 1), "four ticks of each warm it up"
    assert row.p50_ms == pytest.approx(50)
    with pytest.raises(PerfAnalyzerError, match="expected 2 sequences of equal length"):
        row_of({"requests": requests[:-1]}, 2, 320)


def test_perf_analyzers_input_is_the_sound(tmp_path):
    samples = np.arange(700, dtype=np.int16)
    ((first, second, third),) = input_data(samples, 300, 3)["data"]
    decoded = [np.frombuffer(base64.b64decode(tick["AUDIO_IN"]["b64"]), "<i2") for tick in (first, second, third)]
    assert np.array_equal(np.concatenate(decoded), np.concatenate([samples, samples[:200]])), "from its beginning again"
    wrong = tmp_path / "stereo.wav"
    soundfile.write(wrong, np.zeros((100, 2), np.int16), 8000)
    with pytest.raises(PerfAnalyzerError, match=r"expected 16000 Hz mono, got 8000 Hz and shape \(100, 2\)"):
        read_wav(wrong)


def test_what_cannot_be_measured_is_said(served: Served, tmp_path):
    run = sca("bench", "triton", "--conversations", "9", "--build", tmp_path, **ports_of(served))
    assert run.returncode == 1
    assert (
        "--conversations: expected at most 4, the number of slots, got 9: serve with SCA_ENGINE_SLOTS=9" in run.stderr
    )
    run = sca("bench", "bridge", "--build", tmp_path, SCA_TRITON_METRICS_PORT="1")
    assert "no Triton answers at 127.0.0.1:1" in run.stderr
    run = sca("bench", "perf-analyzer", "--conversations", "1", "--build", tmp_path, **ports_of(served))
    assert "the following arguments are required: --wav" in run.stderr


def test_a_row_counts_deadlines_and_factors():
    row = Row.of("x", 4, 320, [0.1, 0.2, 0.3, 0.4])
    assert (row.ticks, row.deadline_misses) == (4, 1)
    assert row.real_time_factor == pytest.approx(0.25 / 0.32)
    assert row.audio_s_per_s == pytest.approx(4 * 0.32 / 0.25)
    assert Row.of("x", 4, 320, [0.1, 0.2], paced=True).audio_s_per_s == 4, "no more than is asked for"


def test_full_size_is_the_published_size():
    """30.5 billion in the thinker's text model, as the checkpoint's card says; 35 in all."""
    from transformers import Qwen3OmniMoeForConditionalGeneration

    with torch.device("meta"):
        model = Qwen3OmniMoeForConditionalGeneration(full_config())
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    text = sum(p.numel() for part in (model.thinker.model, model.thinker.lm_head) for p in part.parameters())
    assert round(text / 1e9, 1) == 30.5
    assert round(sum(count.values()) / 1e9, 1) == 35.3


def test_the_full_size_takes_turns():
    """Its config names the special tokens that its tokenizer has."""
    template = ChatTemplate(make_tokenizer(), full_config())
    assert len(template.answer_opening) == 3


def test_the_full_size_as_files_is_whole(tmp_path, settings, checkpoint: Checkpoint, monkeypatch):
    """With the random checkpoint's sizes, in several shards."""
    monkeypatch.setattr(full_size, "SHARD_BYTES", 3_000_000)
    full_size.write_checkpoint(tmp_path, "cpu", torch.float32, random_config(checkpoint.tokenizer))
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    loaded = load_checkpoint(tmp_path, settings.qwen)
    assert loaded.model.generation_config.eos_token_id == checkpoint.tokenizer.eos_token_id
    waveform = load_code2wav(str(tmp_path))(torch.randint(0, 512, (1, 16, 20)))
    assert 0.01 < float(waveform.std()) < 0.3


def test_weights_made_on_the_device_compute(checkpoint: Checkpoint, settings, ticks):
    made = full_checkpoint("cpu", torch.float32, random_config(checkpoint.tokenizer))
    engine = Engine(made, settings)
    engine.open(1, engine.parse_options({}))
    said = engine.tick({1: ticks[0]})[1]
    assert isinstance(said, TickOutput)
    reference, found = checkpoint.model.thinker.model.rotary_emb, made.model.thinker.model.rotary_emb
    assert torch.equal(reference.inv_freq, found.inv_freq)


def test_the_floor_counts_weights_once_a_step(checkpoint: Checkpoint, settings):
    """By hand for one session just begun: all experts' share that two of eight are, everything else whole."""
    model = checkpoint.model
    sizes = {name: p.nbytes for name, p in model.named_parameters()}

    def total(prefix: str, *without: str) -> float:
        return sum(
            size for name, size in sizes.items() if name.startswith(prefix) and not any(w in name for w in without)
        )

    def decoder(prefix: str, tokens: int) -> float:
        experts = sum(size for name, size in sizes.items() if name.startswith(prefix) and ".experts." in name)
        return total(f"{prefix}layers", ".experts.") + experts * (1 - (1 - 2 / 8) ** tokens)

    thinker, talker, predictor = "thinker.model.", "talker.model.", "talker.code_predictor."
    expected = total("thinker.audio_tower") + decoder(thinker, 4) + 2 * (decoder(thinker, 1) + total("thinker.lm_head"))
    frame = decoder(talker, 1) + total("talker.codec_head") + 15 * total(f"{predictor}model.layers")
    frame += total(f"{predictor}lm_head")
    opening = 5 * 2 * 2 * 16 * 4 * 2  # positions, keys and values, heads, size, bytes, layers
    expected += 4 * (frame + opening)
    assert tick_bytes(model, settings, 1, age_s=0) == pytest.approx(expected)
    assert tick_bytes(model, settings, 2, age_s=60) > tick_bytes(model, settings, 2, age_s=0)
    assert bandwidth(torch.device("cpu")) > 1e8


def test_the_end_of_a_turn_is_measured(checkpoint, settings, monkeypatch):
    """A tick in which a turn ends reads and speaks; a turn of 60 s is as long as it says."""
    monkeypatch.setattr(turn, "SPOKEN_S", (0.6, 2.0))
    rows = list(turn.bench_turn(checkpoint, settings, [3], turns=5))
    assert [row.what for row in rows] == ["end of turn", "end of 5 s", "end of 60 s", "first turn", "tenth turn"]
    assert rows[0].conversations == 3
    assert rows[0].ticks >= 5
    assert all(rows[0].stages_ms[stage] > 0 for stage in ("prefill", "text", "talker", "code predictor"))


def test_the_end_of_a_turn_is_measured_over_websocket(served_turns: Served, monkeypatch):
    """Two bridges are measured in turn; here both are the same. Ticks are counted by the bridge itself."""
    monkeypatch.setattr(turn_bridge, "SPOKEN_S", (0.6, 2.0))
    monkeypatch.setattr(turn_bridge, "ROUNDS", 1)
    settings = served_turns.settings
    rows = turn_bridge.bench_turn_bridge(settings, [2], seconds=6, other_port=settings.bridge.port)
    names = [name for port in ("", f", port {settings.bridge.port}") for name in (f"end of turn{port}", f"tick{port}")]
    assert [row.what for row in rows] == names
    assert all(row.ticks >= 1 and 0 < row.p50_ms < 5000 for row in rows)
    assert rows[1].ticks >= 2 * 6000 / settings.audio.tick_ms, "every tick of both conversations"
    assert rows[1].deadline_misses <= rows[1].ticks


def test_what_users_say_can_be_a_sound(served_turns: Served):
    said = speech()[: 2 * INPUT_HZ]
    turns, _ = turn_bridge.bench_turn_bridge(served_turns.settings, [1], seconds=4, speech=said)
    assert turns.ticks >= 1


def test_a_histogram_is_read_as_prometheus_reads_it():
    """100 ticks, 90 of up to 100 ms and 8 of up to 200 ms; the last two are beyond the last limit."""
    row = turn_bridge._histogram_row("ticks", 1, 150, {0.1: 90.0, 0.2: 98.0, float("inf"): 100.0})
    assert (row.ticks, row.deadline_misses) == (100, 6)
    assert (row.p50_ms, row.p95_ms, row.p99_ms) == pytest.approx((55.6, 162.5, 200), rel=1e-2)


def test_a_longer_turn_and_more_answers_have_more_bytes(checkpoint, turn_settings):
    one, longer, more = (
        floor.turn_bytes(checkpoint.model, turn_settings, conversations, tokens)
        for conversations, tokens in ((1, 10), (1, 100), (8, 10))
    )
    assert one < longer
    assert one < more
