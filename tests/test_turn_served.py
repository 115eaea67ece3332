"""The dialect `turn` through the real server, for clients of the bridge and of Triton."""

from __future__ import annotations

import json
import subprocess

import numpy as np
import pytest
import soundfile
import tritonclient.grpc as grpc_client

from engine.checkpoint import Checkpoint
from export.code2wav import DELAY_SAMPLES
from tests.conftest import ROOT, Served
from tests.lockstep import LockstepClient, open_client
from tests.sockets import end
from tests.test_triton import tick
from tests.turn_oracle import TurnOracle
from tests.turns import TICK, lengthened

SHORT = "answer_tokens=40&answer_frames=80"
MANUAL = f"detection=manual&{SHORT}"
OUTPUT_TICK = 7680


def test_served_answer_equals_generate(served_turns: Served, checkpoint: Checkpoint, questions):
    question = questions[1][: 9 * TICK]
    client = open_client(served_turns, f"voice=ethan&{MANUAL}")
    client.send_audio(question[: 8 * TICK])
    client.socket.send(question[8 * TICK : -1000].tobytes())
    client.send_event("commit")
    answer = [client.receive_tick()]
    assert client.events[-1]["type"] in ("answer_started", "text")
    while not any(event["type"] == "answer_done" for event in client.events):
        client.send_audio(np.zeros(TICK, np.int16))
        answer.append(client.sounds[-1])
    client.socket.close()
    assert not any(sound.any() for sound in client.sounds[:8]), "silence while the user speaks"

    oracle = TurnOracle(checkpoint, "ethan")
    oracle.add_user_turn(
        np.concatenate([question[:-1000], np.zeros(1000, np.int16)])
    )  # the bridge closes the open tick with silence
    expected = oracle.answer(40, 80)
    sound = np.concatenate(answer)
    length = len(expected.waveform)
    assert length > 2 * OUTPUT_TICK
    wave = (expected.waveform * 32767).round().numpy()
    found = sound[DELAY_SAMPLES : DELAY_SAMPLES + length]
    assert np.abs(found - wave[: len(found)]).max() <= 1, "one step of PCM16"
    assert not sound[DELAY_SAMPLES + length :].any(), "silence follows, to the sample"
    text = "".join(event["text"] for event in client.events if event["type"] == "text")
    done = next(event for event in client.events if event["type"] == "answer_done")
    assert text == done["text"]
    assert done["spoken_ms"] == 80 * expected.codes.shape[1]


def late_and_loud(pcm: np.ndarray) -> np.ndarray:
    """Return silence, then speech whose loudest second is its last: windows must be prefilled again."""
    sound = np.concatenate([np.zeros(TICK, np.int16), *[pcm // 8] * 3])[: 20 * 16_000]
    sound[-16_000:] *= 8
    return sound


@pytest.mark.parametrize(
    ("before", "turn"),
    [
        pytest.param(lambda pcm: pcm[: 3 * TICK], lambda pcm: pcm[3 * TICK : 20 * TICK], id="speech through both ends"),
        pytest.param(lambda pcm: pcm[: 2 * TICK], lambda pcm: pcm[2 * TICK : 8 * TICK] // 40, id="a knock before"),
        pytest.param(lambda pcm: pcm[: 4 * TICK], lambda pcm: pcm[4 * TICK : 7 * TICK], id="a second"),
        pytest.param(lambda pcm: pcm[: 1 * TICK], late_and_loud, id="20 s, the loudest moment late"),
    ],
)
def test_served_turn_equals_generate_on_its_raw_samples(served_turns: Served, checkpoint, pcm, before, turn):
    """The client sends to Triton; events report the turn's span, whose samples the official extractor reads."""
    lead, spoken = before(pcm), turn(pcm)
    spoken = spoken[: len(spoken) // TICK * TICK]
    sent = np.concatenate([lead, spoken, pcm[: 3 * TICK]])  # speech continues after the turn
    first, last = len(lead) // TICK, (len(lead) + len(spoken)) // TICK - 1
    sound, events, count = [], [], 0
    with grpc_client.InferenceServerClient(served_turns.triton_grpc) as client:
        while not any(event["type"] == "answer_done" for event in events):
            part = sent[count * TICK : (count + 1) * TICK]
            controls = {"listen": True} if count == first else {"commit": True} if count == last else {}
            options = {"detection": "manual", "answer_tokens": 40, "answer_frames": 80} if count == 0 else {}
            part = part if len(part) else np.zeros(TICK, np.int16)
            answer = tick(client, part, "raw samples", start=count == 0, **options, **controls)
            new = json.loads(answer.as_numpy("EVENTS").item())
            events += new
            if any(event["type"] == "answer_started" for event in events):
                sound.append(answer.as_numpy("AUDIO_OUT")[0])
            count += 1
        tick(client, np.zeros(TICK, np.int16), "raw samples", end=True)
    started = next(event for event in events if event["type"] == "answer_started")
    assert (started["audio_start_ms"], started["audio_end_ms"]) == (first * 320, (last + 1) * 320)
    oracle = TurnOracle(checkpoint, "ethan")
    oracle.add_user_turn(lengthened(spoken))
    expected = oracle.answer(40, 80)
    waveform = (expected.waveform * 32767).round().numpy()
    found = np.concatenate(sound)[DELAY_SAMPLES : DELAY_SAMPLES + len(waveform)]
    assert np.abs(found - waveform[: len(found)]).max() <= 1, "one step of PCM16"
    done = next(event for event in events if event["type"] == "answer_done")
    assert done["text"] == checkpoint.tokenizer.decode(expected.tokens, skip_special_tokens=True)


def test_commit_is_answered_in_the_same_tick(served_turns: Served, questions):
    """The open tick is padded with silence and answered; later ticks are shorter by the padding."""
    client = open_client(served_turns, MANUAL)
    sent = questions[0][: 8 * TICK + 1001]  # an odd number: the output is half a sample longer than a whole number
    client.send_audio(sent[: 8 * TICK])
    client.socket.send(sent[8 * TICK :].tobytes())
    client.send_event("commit")
    assert client.receive_tick(timeout=5).any(), "the first audio, before the client sends more"
    ticks = 0
    while client.events[-1]["type"] != "answer_done" or client.sounds[-1].any() or ticks < 3:
        client.send_audio(np.zeros(TICK, np.int16))
        ticks += 1
    client.send_audio(np.zeros(3 * TICK, np.int16))
    total = sum(len(sound) for sound in client.sounds)
    expected = (len(sent) + (ticks + 3) * TICK) * 3 / 2
    assert 0 <= total - expected < 1, "the output is as long as the input"
    client.socket.close()


def test_interruption_silences_the_answer_within_a_tick(served_turns: Served, questions, interruption):
    for seed in range(12):  # some answers of the random model end before the interruption
        client = open_client(served_turns, f"temperature=0.9&seed={seed}")
        client.send_audio(questions[0][: len(questions[0]) // TICK * TICK])
        if not any(event["type"] == "answer_started" for event in client.events):
            client.wait_for("answer_started")
        client.send_audio(interruption[: len(interruption) // TICK * TICK])
        interrupted = [event for event in client.events if event["type"] == "interrupted"]
        client.socket.close()
        if interrupted:
            break
    else:
        pytest.fail("no answer was long enough")
    speech = [event for event in client.events if event["type"] == "speech_started"][-1]
    assert 0 < interrupted[0]["at_ms"] - speech["at_ms"] <= 320, "at the end of the tick in which speech begins"
    index = speech["at_ms"] // 320
    stale = client.sounds[index]  # audio of the tick in which speech begins
    assert client.sounds[index - 1].any(), "the answer was playing"
    assert not stale.any(), "0 samples of the old answer after the tick before: less than a tick"


def test_typed_messages_are_answered_and_invalid_controls_are_refused(served_turns: Served):
    client = open_client(served_turns, SHORT)
    client.send_event("message", text="Hello, who are you?")
    client.receive_tick()
    kinds = [event["type"] for event in client.events[:2]]
    assert kinds == ["committed", "answer_started"], "without any speech"
    if not any(event["type"] == "answer_done" for event in client.events):
        client.wait_for("answer_done")
    for kind, code in (("commit", "nothing_to_commit"), ("cancel", "nothing_to_cancel")):
        client.send_event(kind)
        assert client.wait_for("error")["code"] == code
    for text in (7, " ", "x" * 4001, "\ud800"):
        client.send_event("message", text=text)
        assert client.wait_for("error")["code"] == "bad_message"
    client.send_event("transcript")
    turns = client.wait_for("transcript")["turns"]
    assert [turn["role"] for turn in turns] == ["user", "assistant"]
    assert turns[0]["text"] == "Hello, who are you?"
    _, code = end(client.socket)
    assert code == 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("voice=nobody", "voice: expected one of aiden, chelsie, ethan, got 'nobody'"),
        (
            "emotion=bored",
            "emotion: expected off, all, or some of neutral, happy, sad, "
            "angry, afraid, surprised, disgusted, got 'bored'",
        ),
        ("dialect=sca", "dialect: expected 'turn', got 'sca'"),
    ],
)
def test_bad_option_is_an_error_of_its_conversation(served_turns: Served, options, message):
    client = open_client(served_turns, options)
    client.socket.send(bytes(TICK * 2))
    event = json.loads(client.socket.recv(timeout=20))
    assert event["type"] == "error"
    assert message in event["message"]


def test_emotion_and_language_are_reported_if_requested(served_turns: Served, questions):
    client = open_client(served_turns, f"emotion=happy,sad&language=all&{MANUAL}")
    client.send_audio(questions[1][: 8 * TICK])
    client.send_event("commit")
    client.receive_tick()
    client.wait_for("answer_done")
    emotion, language = (
        next(event for event in client.events if event["type"] == name) for name in ("emotion", "language")
    )
    assert emotion["label"] in ("happy", "sad")
    assert language["label"] in served_turns.settings.turn.labels("language")
    assert 0 < language["probability"] <= 1
    client.socket.close()


def test_triton_reads_commits_from_request_parameters(served_turns: Served, questions):
    """A gRPC client sends the controls as parameters."""
    with grpc_client.InferenceServerClient(served_turns.triton_grpc) as client:
        answers = [
            tick(
                client,
                questions[0][i * TICK : (i + 1) * TICK],
                "by hand",
                start=i == 0,
                end=i == 8,
                **({"detection": "manual"} if i == 0 else {"commit": True} if i == 8 else {}),
            )
            for i in range(9)
        ]
        events = [json.loads(answer.as_numpy("EVENTS").item()) for answer in answers]
        assert events[:8] == [[]] * 8
        assert [event["type"] for event in events[8][:2]] == ["committed", "answer_started"]
        assert answers[8].as_numpy("AUDIO_OUT").any()
        assert not answers[7].as_numpy("AUDIO_OUT").any()


def test_talk_sends_silence_until_the_answer_has_ended(served_turns: Served, tmp_path, questions):
    recording, output = tmp_path / "in.wav", tmp_path / "out.wav"
    soundfile.write(recording, questions[0], 16000, subtype="PCM_16")
    run = subprocess.run(
        [ROOT / "sca", "talk", recording, output, "--url", served_turns.websocket], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    sound, _ = soundfile.read(output, dtype="int16")
    assert len(sound) / 24000 > len(questions[0]) / 16000 + 1
    spoken = np.flatnonzero(sound)
    assert spoken[0] / 24000 > 3, "silence during the question"
    assert run.stdout.strip(), "the text of the answer"


def test_output_of_simultaneous_conversations_equals_that_of_a_single_one(served_turns: Served, questions):
    """Two simultaneous conversations; a typed message interrupts the answer of one."""

    def send_question(client: LockstepClient, question: np.ndarray) -> None:
        client.send_audio(question[: 7 * TICK])
        client.send_event("commit")

    single = open_client(served_turns, MANUAL)
    send_question(single, questions[0])
    single.receive_tick()
    single.wait_for("answer_done")
    single.socket.close()
    first, second = open_client(served_turns, MANUAL), open_client(served_turns, MANUAL)
    send_question(first, questions[0])
    send_question(second, questions[1])
    second.receive_tick()
    second.send_event("message", text="Stop.")
    first.receive_tick()
    first.wait_for("answer_done")
    assert len(first.sounds) == len(single.sounds)
    for a, b in zip(first.sounds, single.sounds, strict=True):  # the codes are equal; code2wav's sums round by rows
        assert np.abs(a.astype(int) - b).max(initial=0) <= 1, "one step of PCM16"
    for client in (first, second):
        client.socket.close()


def test_end_returns_the_rest_of_the_answer(served_turns: Served, questions):
    """A file without silence after its last word: the bridge appends silence until no turn and no answer is open."""
    client = open_client(served_turns, SHORT)
    client.socket.send(questions[1][: 12 * TICK].tobytes())
    sound, code = end(client.socket, events := [])
    kinds = [event["type"] for event in events]
    assert code == 1000
    assert kinds.index("committed") < kinds.index("answer_started") < kinds.index("answer_done")
    done = next(event for event in events if event["type"] == "answer_done")
    spoken = np.flatnonzero(sound)
    assert spoken[-1] - spoken[0] > 0.5 * done["spoken_ms"] * 24, "the whole answer was received"
    assert len(sound) < 24 * (12 * 320 + 1500 + done["spoken_ms"] + 8 * 320), "the silence after the answer is short"
