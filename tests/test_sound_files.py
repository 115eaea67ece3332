"""Audio files as programs write them: every reader reads them, or refuses them in one sentence."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile

from client import python_grpc, python_websocket
from client.sound import SoundError, read_sound, to_pcm16
from tests.conftest import ROOT

UNKNOWN = 0xFFFFFFFF
INFO = b"LIST" + struct.pack("<I", 26) + b"INFOISFT\x0e\0\0\0Lavf60.16.100\0"
CLIENTS = {
    "websocket": [sys.executable, "client/python_websocket.py"],
    "grpc": [sys.executable, "client/python_grpc.py"],
    "curl": ["client/http_curl.sh"],
}


@pytest.fixture
def samples() -> np.ndarray:
    return (8000 * np.sin(np.arange(12_000) / 9)).astype(np.int16)


def wav(
    pcm: bytes, data_size: int | None = None, riff_size: int | None = None, before: bytes = b"", **form: int
) -> bytes:
    """Return a WAV of 16-bit mono 16 kHz samples, with other fields of the header as given."""
    kind, channels, bits, rate = (
        form.get(k, v) for k, v in {"kind": 1, "channels": 1, "bits": 16, "rate": 16000}.items()
    )
    block = channels * bits // 8
    chunk = struct.pack("<HHIIHH", kind, channels, rate, rate * block % 2**32, block, bits)
    body = b"WAVEfmt " + struct.pack("<I", len(chunk)) + chunk + before + b"data"
    size = len(pcm) if data_size is None else data_size
    riff = len(body) + 4 + len(pcm) if riff_size is None else riff_size
    return b"RIFF" + struct.pack("<I", riff) + body + struct.pack("<I", size) + pcm


def extensible(pcm: bytes) -> bytes:
    subformat = struct.pack("<HHI", 22, 16, 4) + struct.pack("<H", 1) + bytes.fromhex("000000001000800000aa00389b71")
    chunk = struct.pack("<HHIIHH", 0xFFFE, 1, 16000, 32000, 2, 16) + subformat
    body = b"WAVEfmt " + struct.pack("<I", len(chunk)) + chunk + b"data" + struct.pack("<I", len(pcm)) + pcm
    return b"RIFF" + struct.pack("<I", len(body)) + body


def rf64(pcm: bytes) -> bytes:
    sizes = b"ds64" + struct.pack("<IQQQI", 28, len(pcm) + 72, len(pcm), len(pcm) // 2, 0)
    found = wav(pcm, UNKNOWN, UNKNOWN)
    return b"RF64" + found[4:12] + sizes + found[12:]


READ = {
    "plain": wav,
    "sizes of 0": lambda pcm: wav(pcm, 0, 0),
    "data size of 0": lambda pcm: wav(pcm, 0),
    "unknown sizes": lambda pcm: wav(pcm, UNKNOWN, UNKNOWN),
    "largest signed size": lambda pcm: wav(pcm, 0x7FFFFFFF, 0x7FFFFFFF),
    "truncated": lambda pcm: wav(pcm, len(pcm) + 1000),
    "other chunk, size of 0": lambda pcm: wav(pcm, 0, 0, before=INFO),
    "chunk after the samples": lambda pcm: wav(pcm) + INFO,
    "extensible": extensible,
    "rf64": rf64,
    "odd byte": lambda pcm: wav(pcm + b"\1", 0),
}


@pytest.mark.parametrize("make", READ.values(), ids=READ)
def test_wav_of_16_bit_mono_16_khz_is_read_by_talk_and_the_python_clients(make, samples, tmp_path):
    file = tmp_path / "in.wav"
    file.write_bytes(make(samples.tobytes()))
    assert np.array_equal(to_pcm16(read_sound(file)), samples)
    for client in (python_websocket, python_grpc):
        assert client.read_wav(str(file)) == samples.tobytes()


@pytest.fixture
def triton() -> Iterator[tuple[str, list[bytes]]]:
    """Run a stand-in for Triton's HTTP endpoint; yield its address and the samples of each request."""
    received: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append(body[int(self.headers["Inference-Header-Content-Length"]) :])
            self.send_response(200)
            self.end_headers()
            self.wfile.write(bytes(15360))

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}", received
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("make", READ.values(), ids=READ)
def test_wav_of_16_bit_mono_16_khz_is_read_by_the_curl_client(make, samples, tmp_path, triton):
    file, (address, received) = tmp_path / "in.wav", triton
    file.write_bytes(make(samples.tobytes()))
    subprocess.run([*CLIENTS["curl"], file, tmp_path / "out.pcm", address], cwd=ROOT, check=True, capture_output=True)
    sent = b"".join(received)
    assert sent[: 2 * len(samples)] == samples.tobytes()
    assert not any(sent[2 * len(samples) :])
    assert (tmp_path / "out.pcm").stat().st_size == 15360 * len(received)


def ogg(_: bytes) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(16000), 16000, format="OGG")
    return file.getvalue()


REFUSED_BY_CLIENTS = {
    "empty file": lambda _: b"",
    "text": lambda _: b"this is no sound at all, only a text of some length",
    "other format": ogg,
    "no samples": lambda _: wav(b""),
    "no samples, other chunk": lambda _: wav(b"") + INFO,
    "half a sample": lambda _: wav(b"\1"),
    "header only": lambda pcm: wav(pcm)[:20],
    "cut in the container": lambda pcm: wav(pcm)[:10],
    "stereo": lambda pcm: wav(pcm, channels=2),
    "float": lambda pcm: wav(pcm, kind=3, bits=32),
    "half precision": lambda pcm: wav(pcm, kind=3),
    "other rate": lambda pcm: wav(pcm, rate=44100),
}


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("make", REFUSED_BY_CLIENTS.values(), ids=REFUSED_BY_CLIENTS)
def test_client_refuses_another_file_in_one_sentence(client, make, samples, tmp_path):
    file = tmp_path / "in.wav"
    file.write_bytes(make(samples.tobytes()))
    found = subprocess.run(
        [*CLIENTS[client], file, tmp_path / "out.wav", "127.0.0.1:9"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode != 0
    assert len(found.stderr.splitlines()) == 1
    assert str(file) in found.stderr
    assert not (tmp_path / "out.wav").exists()


@pytest.mark.parametrize("client", CLIENTS)
def test_client_refuses_a_file_that_is_missing_or_a_folder(client, tmp_path):
    for file in (tmp_path / "missing.wav", tmp_path):
        command = [*CLIENTS[client], file, tmp_path / "out.wav", "127.0.0.1:9"]
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert found.returncode != 0
        assert len(found.stderr.splitlines()) == 1
        assert str(file) in found.stderr


def write(file: Path, sound: np.ndarray, rate: int = 16000, subtype: str = "FLOAT") -> Path:
    soundfile.write(file, sound, rate, subtype=subtype)
    return file


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_sound_with_values_that_are_not_finite_is_refused(wrong, tmp_path):
    sound = np.zeros(1000, np.float32)
    sound[7] = wrong
    with pytest.raises(SoundError, match="has 1 samples that are NaN or infinite"):
        read_sound(write(tmp_path / "in.wav", sound))


@pytest.mark.parametrize("scale", [12_000.0, 2.0**23, 2.0**31])
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_floats_in_the_range_of_integers_are_refused(scale, subtype, tmp_path):
    sound = scale * np.sin(np.arange(1000) / 9)
    with pytest.raises(SoundError, match="float samples of up to .*: expected -1 to 1"):
        read_sound(write(tmp_path / "in.wav", sound, subtype=subtype))


def test_clipped_floats_are_read(tmp_path):
    sound = 1.5 * np.sin(np.arange(1000) / 9)
    assert to_pcm16(read_sound(write(tmp_path / "in.wav", sound))).max() == 32767


@pytest.mark.parametrize("opposite", [-1.0, -0.98])
def test_channels_that_cancel_each_other_out_are_read_as_the_loudest(opposite, tmp_path):
    left = 0.5 * np.sin(np.arange(16000) / 9).astype(np.float32)
    found = read_sound(write(tmp_path / "in.wav", np.stack([left, opposite * left], axis=1)))
    assert np.array_equal(found, left)


def test_channels_of_one_voice_are_read_as_their_mean(tmp_path):
    left = 0.5 * np.sin(np.arange(16000) / 9).astype(np.float32)
    found = read_sound(write(tmp_path / "in.wav", np.stack([left, left / 2], axis=1)))
    assert np.allclose(found, 0.75 * left)


@pytest.mark.parametrize("name", ["in.wav", "in.mp3", "in.flac", "in.unknown", "in"])
@pytest.mark.parametrize("content", [b"", b"RIFF", b"ID3", b"\xff\xfb\x90\x44", b"fLaC", bytes(5000), b"<html></html>"])
def test_file_that_is_no_sound_is_refused_with_its_name(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SoundError, match=str(tmp_path / name)):
        read_sound(tmp_path / name)


@pytest.mark.parametrize("rate", [0, 1, 2**31, UNKNOWN])
def test_impossible_rate_is_refused(rate, tmp_path):
    (tmp_path / "in.wav").write_bytes(wav(bytes(200), rate=rate))
    with pytest.raises(SoundError, match="in.wav"):
        read_sound(tmp_path / "in.wav")


def test_missing_file_folder_and_header_without_samples_are_refused(tmp_path):
    (tmp_path / "in.wav").write_bytes(wav(b""))
    (tmp_path / "info.wav").write_bytes(wav(b"") + INFO)
    for path in (tmp_path / "missing.wav", tmp_path, tmp_path / "in.wav", tmp_path / "info.wav"):
        with pytest.raises(SoundError, match=str(path)):
            read_sound(path)


def test_big_endian_wav_of_unknown_size_is_read(samples, tmp_path):
    file = io.BytesIO()
    soundfile.write(file, samples, 16000, format="WAV", endian="BIG", subtype="PCM_16")
    content = file.getvalue().replace(struct.pack(">I", 2 * len(samples)), bytes(4), 1)
    (tmp_path / "in.wav").write_bytes(content)
    assert np.array_equal(to_pcm16(read_sound(tmp_path / "in.wav")), samples)
