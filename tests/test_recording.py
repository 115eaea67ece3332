"""Conversations that are kept, and played to the server again."""

from __future__ import annotations

import base64
import json
import resource
import time
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from openai import OpenAI
from websockets.sync.client import connect

from config.settings import OUTPUT_HZ
from frontend.recording import LEFT, RATE, RecordingError, read_recording
from tests.bridges import RunningBridge, bridge
from tests.conftest import Served, sca, wait_until_answered
from tests.sockets import end, event
from tests.test_triton import TICK

TICKS = 8


@pytest.fixture(scope="module")
def recording(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningBridge, Path]]:
    """Run a bridge that records conversations; yields the bridge and the folder."""
    folder = tmp_path_factory.mktemp("recording") / "kept"
    with bridge(served, folder.parent / "log", record_folder=str(folder)) as running:
        wait_until_answered(f"{running.http}/readyz", running.process, running.log)
        yield running, folder


def kept(folder: Path, before: set[Path]) -> Path:
    """Return the WAV that was written since."""
    deadline = time.monotonic() + 20
    while not (new := set(folder.glob("*.wav")) - before):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)  # time for the last tick
    return new.pop()


def replayed(served: Served, path: Path):
    return sca("replay", path, SCA_TRITON_GRPC_PORT=str(served.settings.triton.grpc_port))


@pytest.fixture(scope="module")
def conversation(recording: tuple[RunningBridge, Path], pcm: np.ndarray) -> tuple[Path, np.ndarray]:
    """Record a conversation; returns its WAV and the audio that the client received."""
    running, folder = recording
    with connect(f"{running.websocket}?temperature=1&text_temperature=1") as socket:
        event(socket, "conversation.opened")
        socket.send(pcm[: TICKS * TICK].tobytes())
        heard, code = end(socket)
    assert code == 1000
    return kept(folder, set()), heard


def test_both_channels_are_recorded_unchanged(conversation: tuple[Path, np.ndarray], pcm):
    """A stereo WAV in one time: straight lines lie between the samples, which are unchanged."""
    path, heard = conversation
    ticks = read_recording(path)
    assert np.array_equal(np.concatenate([tick.user for tick in ticks])[: TICKS * TICK], pcm[: TICKS * TICK])
    assert np.array_equal(np.concatenate([tick.assistant for tick in ticks]), heard)
    with wave.open(str(path)) as wav:
        assert (wav.getnchannels(), wav.getframerate()) == (2, RATE)
        assert wav.getnframes() == len(heard) * RATE // OUTPUT_HZ
        left = np.frombuffer(wav.readframes(TICK * LEFT), np.int16)[::2].astype(int)
    between = left[LEFT - 1 : -1 : LEFT] + (left[2 * LEFT - 1 :: LEFT] - left[LEFT - 1 : -LEFT : LEFT]) // LEFT
    assert np.array_equal(left[LEFT::LEFT], between)
    assert int(ticks[0].parameters["seed"]) >= 0, "one was given"
    assert "".join(tick.text for tick in ticks).strip()


def test_replay_returns_the_same_answer(served: Served, conversation: tuple[Path, np.ndarray]):
    """Sampled, with the seed that was kept."""
    run = replayed(served, conversation[0])
    assert run.returncode == 0, run.stderr
    assert "the same answer: 9 ticks, 2.9 s" in run.stdout


def test_full_disk_ends_no_conversation(served: Served, tmp_path, pcm):
    """The system refuses to write, as on a full disk; the log has the failure, the next conversation is recorded."""
    folder = tmp_path / "kept"
    with bridge(served, tmp_path / "log", record_folder=str(folder)) as running:
        wait_until_answered(f"{running.http}/readyz", running.process, running.log)
        _, max_bytes = resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE, (150_000, max_bytes))
        with connect(running.websocket) as socket:
            event(socket, "conversation.opened")
            socket.send(pcm[: TICKS * TICK].tobytes())
            heard, code = end(socket)
        assert code == 1000
        assert len(heard) >= TICKS * 7680
        assert len(read_recording(kept(folder, set()))) < TICKS
        assert "cannot be written, the conversation continues without a recording" in running.log.read_text()
        resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE, (max_bytes, max_bytes))
        before = set(folder.glob("*.wav"))
        with connect(running.websocket) as socket:
            event(socket, "conversation.opened")
            socket.send(pcm[: TICKS * TICK].tobytes())
            assert end(socket)[1] == 1000
        assert len(read_recording(kept(folder, before))) >= TICKS


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        ({"text": "Something else."}, "text differs from tick 2 on (0.64 s): recorded 'Something else.', now "),
        (
            {"events": [{"type": "never"}]},
            "events differs from tick 2 on (0.64 s): recorded [{'type': 'never'}], now [",
        ),
        ({"error": "it failed"}, "error differs from tick 2 on (0.64 s): recorded 'it failed', now None"),
    ],
)
def test_difference_of_an_answer_is_reported(served: Served, conversation, tmp_path, change, reported):
    path = tmp_path / "changed.wav"
    path.write_bytes(conversation[0].read_bytes())
    lines = [json.loads(line) for line in conversation[0].with_suffix(".jsonl").read_text().splitlines()]
    lines[2] |= change
    path.with_suffix(".jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    run = replayed(served, path)
    assert run.returncode == 1
    assert reported in run.stdout
    assert "sound" not in run.stdout


def test_difference_of_audio_is_reported_by_its_first_sample(served: Served, conversation, tmp_path):
    path = tmp_path / "changed.wav"
    lines = conversation[0].with_suffix(".jsonl").read_text()
    path.with_suffix(".jsonl").write_text(lines)
    with wave.open(str(conversation[0])) as wav, wave.open(str(path), "wb") as changed:
        frames = np.frombuffer(wav.readframes(wav.getnframes()), np.int16).copy().reshape(-1, 2)
        frames[2 * 3 * TICK + 101, 1] += 5  # tick 2, the 51st sample of the voice
        changed.setparams((2, 2, RATE, 0, "NONE", ""))
        changed.writeframes(frames.tobytes())
    run = replayed(served, path)
    assert run.returncode == 1
    assert "sound differs from tick 2 on (0.64 s): recorded 'sample 50 is" in run.stdout


def test_realtime_session_is_recorded(served_turns: Served, pcm, tmp_path):
    folder = tmp_path / "kept"
    with bridge(served_turns, tmp_path / "log", record_folder=str(folder)) as running:
        wait_until_answered(f"{running.http}/readyz", running.process, running.log)
        client = OpenAI(api_key="none", base_url=f"{running.http}/v1")
        with client.realtime.connect(model="sca") as connection:
            connection.session.update(session={"type": "realtime", "audio": {"input": {"turn_detection": None}}})
            connection.input_audio_buffer.append(audio=base64.b64encode(pcm[: 4 * TICK].tobytes()).decode())
            connection.input_audio_buffer.commit()
            connection.response.create()
            for answer in connection:
                assert answer.type != "error", answer
                if answer.type == "response.done":
                    break
        path = kept(folder, set())
    ticks = read_recording(path)
    assert any(event["type"] == "answer_done" for tick in ticks for event in tick.events)
    assert replayed(served_turns, path).returncode == 0


def test_nothing_is_recorded_by_default(served: Served):
    assert served.settings.bridge.record_folder == ""


def test_disk_that_accepts_nothing_ends_no_conversation(served: Served, pcm, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with bridge(served, tmp_path / "log", record_folder=str(tmp_path / "file")) as running:
        wait_until_answered(f"{running.http}/readyz", running.process, running.log)
        with connect(running.websocket) as socket:
            event(socket, "conversation.opened")
            socket.send(pcm[: 2 * TICK].tobytes())
            heard, code = end(socket)
        assert code == 1000
        assert len(heard) == 3 * 7680
        assert "cannot be written, the conversation continues" in running.log.read_text()


def test_file_that_is_no_recording_is_refused_by_name(tmp_path):
    with pytest.raises(RecordingError, match=r"none\.wav cannot be read with its \.jsonl"):
        read_recording(tmp_path / "none.wav")
    path = tmp_path / "mono.wav"
    with wave.open(str(path), "wb") as wav:
        wav.setparams((1, 2, 16000, 0, "NONE", ""))
        wav.writeframes(bytes(100))
    with pytest.raises(RecordingError, match="expected a recording, 16 bit stereo at 48000 Hz"):
        read_recording(path)
    run = sca("replay", path)
    assert run.returncode == 1
    assert run.stderr.startswith("sca: ")
