"""The one command from the outside: `talk` with a server, and one-line errors for what cannot be."""

from __future__ import annotations

import socket

import numpy as np
import pytest
import soundfile
import torch

from engine.checkpoint import Checkpoint
from tests.conftest import BUILD, Served, sca, serve_environment
from tests.oracle import ScaOracle, one_shot_waveform
from tests.sound import official_stream


def settings_of_serve() -> dict[str, str]:
    return {name: value for name, value in serve_environment().items() if name.startswith("SCA_")}


def test_talk_gives_what_transformers_gives(served: Served, checkpoint: Checkpoint, extractor, pcm, tmp_path):
    """The whole path: a WAV through bridge and Triton, against transformers on the same samples."""
    source, target = tmp_path / "in.wav", tmp_path / "out.wav"
    soundfile.write(source, pcm, 16000, subtype="PCM_16")
    run = sca("talk", source, target, "--url", served.websocket)
    assert run.returncode == 0, run.stderr
    sound, rate = soundfile.read(target, dtype="int16")
    assert rate == 24000
    assert abs(len(sound) / 24000 - len(pcm) / 16000) <= 0.32, "as long as its input, to a tick"

    oracle = ScaOracle(checkpoint.model, checkpoint.tokenizer, "ethan")  # Qwen's own default
    codes = torch.cat([oracle.tick(official)[1] for official in official_stream(extractor, pcm)], dim=1)
    expected = (one_shot_waveform(checkpoint.model.code2wav, codes) * 32767).round().numpy()
    assert np.abs(sound[: len(expected)] - expected).max() <= 1, "one step of PCM16"


@pytest.mark.parametrize(("rate", "channels"), [(48000, 2), (8000, 1)])
def test_talk_reads_a_wav_of_any_rate(served: Served, tmp_path, rate, channels):
    source = tmp_path / "in.wav"
    tone = np.sin(2 * np.pi * 300 * np.arange(rate) / rate)[:, None].repeat(channels, axis=1) * 0.3
    soundfile.write(source, tone, rate)
    run = sca("talk", source, tmp_path / "out.wav", "--url", served.websocket)
    assert run.returncode == 0, run.stderr
    assert soundfile.info(tmp_path / "out.wav").frames == 4 * 7680


def test_talk_names_a_server_that_does_not_answer(tmp_path):
    source = tmp_path / "in.wav"
    soundfile.write(source, np.zeros(16000), 16000)
    run = sca("talk", source, tmp_path / "out.wav", "--url", "ws://127.0.0.1:9/ws/pcm16")
    assert run.returncode == 1
    assert "sca: no conversation with ws://127.0.0.1:9/ws/pcm16" in run.stderr
    assert "Traceback" not in run.stderr


def test_talk_checks_the_output_before_it_connects(tmp_path):
    soundfile.write(tmp_path / "in.wav", np.zeros(16000), 16000)
    run = sca("talk", tmp_path / "in.wav", tmp_path / "none" / "out.wav", "--url", "ws://127.0.0.1:9/")
    assert run.returncode == 1
    assert "out.wav cannot be written: there is no folder" in run.stderr


def test_talk_names_a_file_that_is_not_audio(tmp_path):
    (tmp_path / "in.wav").write_text("not a sound")
    run = sca("talk", tmp_path / "in.wav", tmp_path / "out.wav")
    assert run.returncode == 1
    assert "in.wav cannot be read as sound" in run.stderr


def test_second_serve_needs_another_build_folder(served: Served):
    run = sca("serve", "--build", BUILD, **settings_of_serve())
    assert run.returncode == 1
    assert "another ./sca serve runs on" in run.stderr
    assert "--build FOLDER" in run.stderr


@pytest.mark.parametrize("setting", ["BRIDGE_PORT", "TRITON_HTTP_PORT", "TRITON_GRPC_PORT", "TRITON_METRICS_PORT"])
def test_serve_names_the_port_in_use(setting):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        run = sca("serve", **{**settings_of_serve(), f"SCA_{setting}": port})
    assert run.returncode == 1
    name = setting.lower().replace("_", ".", 1)
    assert f"sca: port {port} on 127.0.0.1 is in use; choose another {name}" in run.stderr


def test_serve_names_a_checkpoint_of_another_model_type(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    run = sca("serve", "--build", tmp_path / "build", **{**settings_of_serve(), "SCA_QWEN_MODEL_ID": str(tmp_path)})
    assert run.returncode == 1
    assert "expected model type 'qwen3_omni_moe', got 'llama'" in run.stderr
    assert "Traceback" not in run.stderr


def test_wrong_setting_is_one_line():
    run = sca("serve", SCA_BRIDGE_PROT="1")
    assert run.returncode == 1
    assert run.stderr.startswith("sca: unknown environment variable SCA_BRIDGE_PROT")
    assert len(run.stderr.splitlines()) == 1
