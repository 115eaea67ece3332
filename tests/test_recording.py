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
    """A bridge that keeps what it hears, and the folder."""
    folder = tmp_path_factory.mktemp("recording") / "kept"
    with bridge(served, folder.parent / "log", record_folder=str(folder)) as running:
        wait_until_answered(f"{running.http}/readyz", running.process, running.log)
        yield running, folder


def kept(folder: Path, before: set[Path]) -> Path:
    """The WAV that was written since."""
    deadline = time.monotonic() + 20
    while not (new := set(folder.glob("*.wav")) - before):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)  # its last tick
    return new.pop()


def replayed(served: Served, path: Path):
    return sca("replay", path, SCA_TRITON_GRPC_PORT=str(served.settings.triton.grpc_port))


@pytest.fixture(scope="module")
def conversation(recording: tuple[RunningBridge, Path], pcm: np.ndarray) -> tuple[Path, np.ndarray]:
    """A conversation's recording, and what its client heard."""
    running, folder = recording
    with connect(f"{running.websocket}?temperature=1&text_temperature=1") as socket:
        event(socket, "conversation.opened")
        socket.send(pcm[: TICKS * TICK].tobytes())
        heard, code = end(socket)
    assert code == 1000
    return kept(folder, set()), heard


def test_both_sides_are_kept_as_they_were(conversation: tuple[Path, np.ndarray], pcm):
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


def test_a_replay_gives_the_same_answer(served: Served, conversation: tuple[Path, np.ndarray]):
    """Sampled, with the seed that was kept."""
    run = replayed(served, conversation[0])
    assert run.returncode == 0, run.stderr
    assert "the same answer: 9 ticks, 2.9 s" in run.stdout


def test_a_disk_that_is_full_ends_no_conversation(served: Served, tmp_path, pcm):
    """The system refuses to write further, as it does there; the log tells, and the next conversation is kept again."""
    folder = tmp_path / "kept"
    with bridge(served, tmp_path / "log", record_folder=str(folder)) as running:
        wait_until_answered(f"{running.http}/readyz", running.process, running.log)
        _, most = resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE, (150_000, most))
        with connect(running.websocket) as socket:
            event(socket, "conversation.opened")
            socket.send(pcm[: TICKS * TICK].tobytes())
            heard, code = end(socket)
        assert code == 1000
        assert len(heard) >= TICKS * 7680
        assert len(read_recording(kept(folder, set()))) < TICKS
        assert "cannot be written, the conversation continues without a recording" in running.log.read_text()
        resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE, (most, most))
        before = set(folder.glob("*.wav"))
        with connect(running.websocket) as socket:
            event(socket, "conversation.opened")
            socket.send(pcm[: TICKS * TICK].tobytes())
            assert end(socket)[1] == 1000
        assert len(read_recording(kept(folder, before))) >= TICKS


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"text": "Something else."}, "text differs from tick 2 on (0.64 s): recorded 'Something else.', now "),
        (
            {"events": [{"type": "never"}]},
            "events differs from tick 2 on (0.64 s): recorded [{'type': 'never'}], now [",
        ),
        ({"error": "it failed"}, "error differs from tick 2 on (0.64 s): recorded 'it failed', now None"),
    ],
)
def test_where_the_answer_differs_is_told(served: Served, conversation, tmp_path, change, told):
    path = tmp_path / "changed.wav"
    path.write_bytes(conversation[0].read_bytes())
    lines = [json.loads(line) for line in conversation[0].with_suffix(".jsonl").read_text().splitlines()]
    lines[2] |= change
    path.with_suffix(".jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    run = replayed(served, path)
    assert run.returncode == 1
    assert told in run.stdout
    assert "sound" not in run.stdout


def test_sound_that_differs_is_told_by_its_first_sample(served: Served, conversation, tmp_path):
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


def test_the_realtime_protocol_is_kept_too(served_turns: Served, pcm, tmp_path):
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


def test_nothing_is_kept_unless_asked_for(served: Served):
    assert served.settings.bridge.record_folder == ""


def test_a_disk_that_takes_nothing_ends_no_conversation(served: Served, pcm, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with bridge(served, tmp_path / "log", record_folder=str(tmp_path / "file")) as running:
        wait_until_answered(f"{running.http}/readyz", running.process, running.log)
        with connect(running.websocket) as socket:
            event(socket, "conversation.opened")
            socket.send(pcm[: 2 * TICK].tobytes())
            heard, code = end(socket)
        assert code == 1000
        assert len(heard) == 3 * 7680
        assert "cannot be written, the conversation goes on" in running.log.read_text()


def test_what_is_no_recording_is_refused_by_name(tmp_path):
    with pytest.raises(RecordingError, match=r"none\.wav cannot be read with its \.jsonl"):
        read_recording(tmp_path / "none.wav")
    path = tmp_path / "mono.wav"
    with wave.open(str(path), "wb") as wav:
        wav.setparams((1, 2, 16000, 0, "NONE", ""))
        wav.writeframes(bytes(100))
    with pytest.raises(RecordingError, match="expected 16 bit stereo at 48000 Hz"):
        read_recording(path)
    run = sca("replay", path)
    assert run.returncode == 1
    assert run.stderr.startswith("sca: ")
