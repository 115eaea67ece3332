"""NVIDIA's perf_analyzer at the real server, and what becomes of its record."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
import soundfile
import tritonclient.grpc as triton

from benchmarks.perf_analyzer import PerfAnalyzerError, input_data, read_wav, row_of
from tests.bench import SERVED_STAGES, ports_of, rows_of
from tests.conftest import BUILD, Served, sca


def test_perf_analyzer_gets_the_audio_of_any_client(served: Served, tmp_path, pcm):
    """NVIDIA's own binary, in real time, one sequence per session."""
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
        assert np.mean(gaps) > 160, "paced: without a pace, the next tick follows at once"
    for tick, request in enumerate(next(iter(sequences.values()))):
        sound = pcm[None, tick * 5120 : (tick + 1) * 5120]
        assert request["request_inputs"]["AUDIO_IN"] == sound[0].tolist()
        audio = triton.InferInput("AUDIO_IN", [1, 5120], "INT16")
        audio.set_data_from_numpy(sound)
        answer = client.infer("duplex", [audio], sequence_id=9, sequence_start=tick == 0, sequence_end=tick == 13)
        heard = np.array(request["response_outputs"][0]["AUDIO_OUT"])
        assert np.abs(heard - answer.as_numpy("AUDIO_OUT")[0]).max() <= 1, "a step of PCM16: batches differ by that"


def test_record_of_perf_analyzer_becomes_a_row():
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


def test_input_of_perf_analyzer_is_the_audio_in_ticks(tmp_path):
    samples = np.arange(700, dtype=np.int16)
    ((first, second, third),) = input_data(samples, 300, 3)["data"]
    decoded = [np.frombuffer(base64.b64decode(tick["AUDIO_IN"]["b64"]), "<i2") for tick in (first, second, third)]
    assert np.array_equal(np.concatenate(decoded), np.concatenate([samples, samples[:200]])), "from its beginning again"
    wrong = tmp_path / "stereo.wav"
    soundfile.write(wrong, np.zeros((100, 2), np.int16), 8000)
    with pytest.raises(PerfAnalyzerError, match=r"expected 16000 Hz mono, got 8000 Hz and shape \(100, 2\)"):
        read_wav(wrong)
