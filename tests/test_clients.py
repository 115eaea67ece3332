"""Every client program works unchanged, and all receive the same audio."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile

from client.python_grpc import converse
from client.python_websocket import talk
from tests.conftest import ROOT, Served
from tests.sound import is_same_sound

TICKS = 6
SAMPLES = TICKS * 5120 - 100  # the last tick is incomplete


@pytest.fixture(scope="module")
def wav(tmp_path_factory, pcm) -> Path:
    file = tmp_path_factory.mktemp("clients") / "in.wav"
    soundfile.write(file, pcm[:SAMPLES], 16000, subtype="PCM_16")
    return file


@pytest.fixture(scope="module")
def expected(served: Served, pcm) -> tuple[np.ndarray, str]:
    return converse(served.triton_grpc, pcm[:SAMPLES])


def test_answer_has_as_many_ticks_as_the_input(expected):
    assert len(expected[0]) == TICKS * 7680
    assert 1000 < expected[0].std() < 16000


def install_node_packages() -> None:
    if not (ROOT / "client" / "node" / "node_modules").exists():
        subprocess.run(["npm", "ci", "--silent"], cwd=ROOT / "client" / "node", check=True)


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)


def test_python_websocket_client_receives_the_answer(served: Served, wav, pcm, expected, tmp_path):
    found = run(sys.executable, "client/python_websocket.py", wav, tmp_path / "out.wav", served.websocket)
    assert found.stdout == expected[1] + "\n"
    answer = asyncio.run(talk(served.websocket, pcm[:SAMPLES].tobytes()))
    assert is_same_sound(np.frombuffer(answer.pcm, np.int16), expected[0])
    assert answer.text == expected[1]


def test_python_grpc_client_receives_the_answer(served: Served, wav, expected, tmp_path):
    found = run(sys.executable, "client/python_grpc.py", wav, tmp_path / "out.wav", served.triton_grpc)
    with wave.open(str(tmp_path / "out.wav")) as output:
        assert (output.getframerate(), output.getnchannels()) == (24000, 1)
        assert is_same_sound(np.frombuffer(output.readframes(10**9), np.int16), expected[0])
    assert found.stdout == expected[1] + "\n"


def test_curl_client_receives_the_answer(served: Served, wav, expected, tmp_path):
    found = run("client/http_curl.sh", wav, tmp_path / "out.pcm", served.triton_http)
    assert is_same_sound(np.fromfile(tmp_path / "out.pcm", np.int16), expected[0])
    assert f"{TICKS} ticks sent and received" in found.stderr


@pytest.mark.parametrize(
    "client",
    [
        [sys.executable, "client/python_websocket.py"],
        [sys.executable, "client/python_grpc.py"],
        ["client/http_curl.sh"],
        ["node", "client/node/converse.js"],
    ],
    ids=["websocket", "grpc", "curl", "node"],
)
def test_client_refuses_another_wav_format_and_prints_its_usage_without_arguments(client, tmp_path):
    install_node_packages()
    wrong = tmp_path / "wrong.wav"
    soundfile.write(wrong, np.zeros((4410, 2)), 44100, subtype="PCM_16")
    for arguments, message in (([wrong, tmp_path / "out"], "16"), ([], "IN.wav OUT")):
        found = subprocess.run([*client, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        assert found.returncode != 0
        assert message in found.stderr
        assert "Traceback" not in found.stderr


@pytest.mark.parametrize("client", ["curl", "node"])
def test_client_sends_only_the_data_chunk_of_a_wav(served: Served, wav, expected, tmp_path, client: str):
    """Other chunks, such as ffmpeg's INFO, are before and after the data chunk."""
    install_node_packages()
    plain, info = wav.read_bytes(), b"LIST" + (26).to_bytes(4, "little") + b"INFOISFT\x0e\0\0\0Lavf60.16.100\0"
    at = plain.index(b"data")
    extended, out = tmp_path / "in.wav", tmp_path / "out.wav"
    extended.write_bytes(plain[:at] + info + plain[at:] + info)
    if client == "curl":
        run("client/http_curl.sh", extended, out, served.triton_http)
        sound = np.fromfile(out, np.int16)
    else:
        run("node", "client/node/converse.js", extended, out, served.triton_grpc)
        sound, _ = soundfile.read(out, dtype="int16")
    assert is_same_sound(sound, expected[0])


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF])
def test_node_client_reads_a_wav_whose_size_was_unknown(served: Served, wav, expected, tmp_path, size: int):
    install_node_packages()
    plain, unknown = wav.read_bytes(), size.to_bytes(4, "little")
    at = plain.index(b"data") + 4
    (tmp_path / "in.wav").write_bytes(plain[:4] + unknown + plain[8:at] + unknown + plain[at + 4 :])
    run("node", "client/node/converse.js", tmp_path / "in.wav", tmp_path / "out.wav", served.triton_grpc)
    sound, _ = soundfile.read(tmp_path / "out.wav", dtype="int16")
    assert is_same_sound(sound, expected[0])


@pytest.mark.parametrize("content", [b"", b"text", b"RIFF\0\0\0\0WAVE", b"RIFF\0\0\0\0WAVEfmt \x02\0\0\0\1\0", None])
def test_node_client_refuses_another_file_in_one_sentence(content: bytes | None, tmp_path):
    install_node_packages()
    if content is not None:
        (tmp_path / "in.wav").write_bytes(content)
    command = ["node", "client/node/converse.js", tmp_path / "in.wav", tmp_path / "out.wav"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode != 0
    assert len(found.stderr.splitlines()) == 1
    assert "in.wav" in found.stderr


def test_curl_client_prints_the_error_of_triton(served: Served, wav, tmp_path):
    script = (ROOT / "client" / "http_curl.sh").read_text().replace("tick_samples=5120", "tick_samples=100")
    wrong = tmp_path / "wrong.sh"
    wrong.write_text(script)
    found = subprocess.run(
        ["bash", wrong, wav, tmp_path / "out", served.triton_http], capture_output=True, text=True, check=False
    )
    assert found.returncode != 0
    assert "[1,100]" in found.stderr


def test_node_client_receives_the_answer(served: Served, wav, expected, tmp_path):
    install_node_packages()
    found = run("node", "client/node/converse.js", wav, tmp_path / "out.wav", served.triton_grpc)
    sound, rate = soundfile.read(tmp_path / "out.wav", dtype="int16")
    assert rate == 24000
    assert is_same_sound(sound, expected[0])
    assert found.stdout == expected[1] + "\n"
