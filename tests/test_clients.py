"""Every client works as it stands, and all hear the same."""

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
SAMPLES = TICKS * 5120 - 100  # the last tick is not whole


@pytest.fixture(scope="module")
def said(tmp_path_factory, pcm) -> Path:
    file = tmp_path_factory.mktemp("said") / "in.wav"
    soundfile.write(file, pcm[:SAMPLES], 16000, subtype="PCM_16")
    return file


@pytest.fixture(scope="module")
def expected(served: Served, pcm) -> tuple[np.ndarray, str]:
    return converse(served.triton_grpc, pcm[:SAMPLES])


def test_the_answer_is_as_long_as_the_question_to_a_tick(expected):
    assert len(expected[0]) == TICKS * 7680
    assert 1000 < expected[0].std() < 16000


def install_node_packages() -> None:
    if not (ROOT / "client" / "node" / "node_modules").exists():
        subprocess.run(["npm", "ci", "--silent"], cwd=ROOT / "client" / "node", check=True)


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)


def test_python_over_websocket(served: Served, said, pcm, expected, tmp_path):
    found = run(sys.executable, "client/python_websocket.py", said, tmp_path / "out.wav", served.websocket)
    assert found.stdout == expected[1] + "\n"
    answer = asyncio.run(talk(served.websocket, pcm[:SAMPLES].tobytes()))
    assert is_same_sound(np.frombuffer(answer.pcm, np.int16), expected[0])
    assert answer.text == expected[1]


def test_python_over_grpc(served: Served, said, expected, tmp_path):
    found = run(sys.executable, "client/python_grpc.py", said, tmp_path / "out.wav", served.triton_grpc)
    with wave.open(str(tmp_path / "out.wav")) as kept:
        assert (kept.getframerate(), kept.getnchannels()) == (24000, 1)
        assert is_same_sound(np.frombuffer(kept.readframes(10**9), np.int16), expected[0])
    assert found.stdout == expected[1] + "\n"


def test_curl_over_http(served: Served, said, expected, tmp_path):
    found = run("client/http_curl.sh", said, tmp_path / "out.pcm", served.triton_http)
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
def test_a_wav_of_another_format_is_refused_and_no_wav_gets_the_usage(client, tmp_path):
    install_node_packages()
    wrong = tmp_path / "wrong.wav"
    soundfile.write(wrong, np.zeros((4410, 2)), 44100, subtype="PCM_16")
    for arguments, message in (([wrong, tmp_path / "out"], "16"), ([], "IN.wav OUT")):
        found = subprocess.run([*client, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        assert found.returncode != 0
        assert message in found.stderr
        assert "Traceback" not in found.stderr


@pytest.mark.parametrize("client", ["curl", "node"])
def test_what_else_is_in_a_wav_is_not_spoken(served: Served, said, expected, tmp_path, client: str):
    """As ffmpeg writes it: who made it, before the sound, and more behind it."""
    install_node_packages()
    plain, about = said.read_bytes(), b"LIST" + (26).to_bytes(4, "little") + b"INFOISFT\x0e\0\0\0Lavf60.16.100\0"
    at = plain.index(b"data")
    wav, out = tmp_path / "in.wav", tmp_path / "out.wav"
    wav.write_bytes(plain[:at] + about + plain[at:] + about)
    if client == "curl":
        run("client/http_curl.sh", wav, out, served.triton_http)
        sound = np.fromfile(out, np.int16)
    else:
        run("node", "client/node/converse.js", wav, out, served.triton_grpc)
        sound, _ = soundfile.read(out, dtype="int16")
    assert is_same_sound(sound, expected[0])


def test_curl_shows_what_triton_says_of_a_mistake(served: Served, said, tmp_path):
    script = (ROOT / "client" / "http_curl.sh").read_text().replace("tick_samples=5120", "tick_samples=100")
    wrong = tmp_path / "wrong.sh"
    wrong.write_text(script)
    found = subprocess.run(
        ["bash", wrong, said, tmp_path / "out", served.triton_http], capture_output=True, text=True, check=False
    )
    assert found.returncode != 0
    assert "[1,100]" in found.stderr


def test_node_over_grpc(served: Served, said, expected, tmp_path):
    install_node_packages()
    found = run("node", "client/node/converse.js", said, tmp_path / "out.wav", served.triton_grpc)
    sound, rate = soundfile.read(tmp_path / "out.wav", dtype="int16")
    assert rate == 24000
    assert is_same_sound(sound, expected[0])
    assert found.stdout == expected[1] + "\n"
