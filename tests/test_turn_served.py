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
from tests.guest import Guest, guest
from tests.sockets import end
from tests.test_triton import tick
from tests.turn_oracle import TurnOracle
from tests.turns import TICK, lengthened

SHORT = "answer_tokens=40&answer_frames=80"
MANUAL = f"detection=manual&{SHORT}"
OUTPUT_TICK = 7680


def test_served_answer_equals_generate(served_turns: Served, checkpoint: Checkpoint, questions):
    said = questions[1][: 9 * TICK]
    client = guest(served_turns, f"voice=ethan&{MANUAL}")
    client.say(said[: 8 * TICK])
    client.socket.send(said[8 * TICK : -1000].tobytes())
    client.ask("commit")
    answer = [client.hear()]
    assert client.events[-1]["type"] in ("answer_started", "text")
    while not any(event["type"] == "answer_done" for event in client.events):
        client.say(np.zeros(TICK, np.int16))
        answer.append(client.sounds[-1])
    client.socket.close()
    assert not any(sound.any() for sound in client.sounds[:8]), "silence while it listens"

    oracle = TurnOracle(checkpoint, "ethan")
    oracle.add_user_turn(
        np.concatenate([said[:-1000], np.zeros(1000, np.int16)])
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
    """Silence, then speech whose loudest moment is its last second: windows must be prefilled again."""
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
    """Straight to Triton: the turn's span is told by events, and its samples go through the official extractor."""
    lead, said = before(pcm), turn(pcm)
    said = said[: len(said) // TICK * TICK]
    sent = np.concatenate([lead, said, pcm[: 3 * TICK]])  # sound goes on behind the turn
    first, last = len(lead) // TICK, (len(lead) + len(said)) // TICK - 1
    sound, events, count = [], [], 0
    with grpc_client.InferenceServerClient(served_turns.triton_grpc) as client:
        while not any(event["type"] == "answer_done" for event in events):
            part = sent[count * TICK : (count + 1) * TICK]
            asked = {"listen": True} if count == first else {"commit": True} if count == last else {}
            options = {"detection": "manual", "answer_tokens": 40, "answer_frames": 80} if count == 0 else {}
            part = part if len(part) else np.zeros(TICK, np.int16)
            answer = tick(client, part, "raw samples", start=count == 0, **options, **asked)
            new = json.loads(answer.as_numpy("EVENTS").item())
            events += new
            if any(event["type"] == "answer_started" for event in events):
                sound.append(answer.as_numpy("AUDIO_OUT")[0])
            count += 1
        tick(client, np.zeros(TICK, np.int16), "raw samples", end=True)
    started = next(event for event in events if event["type"] == "answer_started")
    assert (started["audio_start_ms"], started["audio_end_ms"]) == (first * 320, (last + 1) * 320)
    oracle = TurnOracle(checkpoint, "ethan")
    oracle.add_user_turn(lengthened(said))
    expected = oracle.answer(40, 80)
    waveform = (expected.waveform * 32767).round().numpy()
    found = np.concatenate(sound)[DELAY_SAMPLES : DELAY_SAMPLES + len(waveform)]
    assert np.abs(found - waveform[: len(found)]).max() <= 1, "one step of PCM16"
    done = next(event for event in events if event["type"] == "answer_done")
    assert done["text"] == checkpoint.tokenizer.decode(expected.tokens, skip_special_tokens=True)


def test_commit_is_answered_at_once(served_turns: Served, questions):
    """The open tick is padded with silence and answered; later ticks are shorter by the padding."""
    client = guest(served_turns, MANUAL)
    sent = questions[0][: 8 * TICK + 1001]  # an odd number: half a sample of the loudspeaker's is nobody's
    client.say(sent[: 8 * TICK])
    client.socket.send(sent[8 * TICK :].tobytes())
    client.ask("commit")
    assert client.hear(timeout=5).any(), "the first sound, with nothing more said"
    ticks = 0
    while client.events[-1]["type"] != "answer_done" or client.sounds[-1].any() or ticks < 3:
        client.say(np.zeros(TICK, np.int16))
        ticks += 1
    client.say(np.zeros(3 * TICK, np.int16))
    total = sum(len(sound) for sound in client.sounds)
    expected = (len(sent) + (ticks + 3) * TICK) * 3 / 2
    assert 0 <= total - expected < 1, "the loudspeaker is not a sample behind or ahead"
    client.socket.close()


def test_interruption_leaves_at_most_a_tick_of_sound(served_turns: Served, questions, interruption):
    for seed in range(12):  # some answers of the random model are over before
        client = guest(served_turns, f"temperature=0.9&seed={seed}")
        client.say(questions[0][: len(questions[0]) // TICK * TICK])
        if not any(event["type"] == "answer_started" for event in client.events):
            client.wait_for("answer_started")
        client.say(interruption[: len(interruption) // TICK * TICK])
        interrupted = [event for event in client.events if event["type"] == "interrupted"]
        client.socket.close()
        if interrupted:
            break
    else:
        pytest.fail("no answer was long enough")
    speech = [event for event in client.events if event["type"] == "speech_started"][-1]
    assert 0 < interrupted[0]["at_ms"] - speech["at_ms"] <= 320, "at the end of the tick in which speech begins"
    place = speech["at_ms"] // 320
    stale = client.sounds[place]  # of the tick in which speech begins
    assert client.sounds[place - 1].any(), "it was speaking"
    assert not stale.any(), "0 samples of the old answer after the tick before: less than a tick"


def test_messages_are_answered_and_mistakes_refused(served_turns: Served):
    client = guest(served_turns, SHORT)
    client.ask("message", text="Hello, who are you?")
    client.hear()
    kinds = [event["type"] for event in client.events[:2]]
    assert kinds == ["committed", "answer_started"], "with nothing said at all"
    if not any(event["type"] == "answer_done" for event in client.events):
        client.wait_for("answer_done")
    for kind, code in (("commit", "nothing_to_commit"), ("cancel", "nothing_to_cancel")):
        client.ask(kind)
        assert client.wait_for("error")["code"] == code
    for text in (7, " ", "x" * 4001, "\ud800"):
        client.ask("message", text=text)
        assert client.wait_for("error")["code"] == "bad_message"
    client.ask("transcript")
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
    client = guest(served_turns, options)
    client.socket.send(bytes(TICK * 2))
    event = json.loads(client.socket.recv(timeout=20))
    assert event["type"] == "error"
    assert message in event["message"]


def test_emotion_and_language_are_reported_if_requested(served_turns: Served, questions):
    client = guest(served_turns, f"emotion=happy,sad&language=all&{MANUAL}")
    client.say(questions[1][: 8 * TICK])
    client.ask("commit")
    client.hear()
    client.wait_for("answer_done")
    emotion, language = (
        next(event for event in client.events if event["type"] == name) for name in ("emotion", "language")
    )
    assert emotion["label"] in ("happy", "sad")
    assert language["label"] in served_turns.settings.turn.labels("language")
    assert 0 < language["probability"] <= 1
    client.socket.close()


def test_triton_reads_commits_from_request_parameters(served_turns: Served, questions):
    """As any gRPC client sends them."""
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
    said, heard = tmp_path / "in.wav", tmp_path / "out.wav"
    soundfile.write(said, questions[0], 16000, subtype="PCM_16")
    run = subprocess.run(
        [ROOT / "sca", "talk", said, heard, "--url", served_turns.websocket], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    sound, _ = soundfile.read(heard, dtype="int16")
    assert len(sound) / 24000 > len(questions[0]) / 16000 + 1
    spoken = np.flatnonzero(sound)
    assert spoken[0] / 24000 > 3, "it listened first"
    assert run.stdout.strip(), "the text of the answer"


def test_conversations_at_once_are_as_alone(served_turns: Served, questions):
    """Two at once, one of them interrupted by its own message."""

    def ask(client: Guest, question: np.ndarray) -> None:
        client.say(question[: 7 * TICK])
        client.ask("commit")

    alone = guest(served_turns, MANUAL)
    ask(alone, questions[0])
    alone.hear()
    alone.wait_for("answer_done")
    alone.socket.close()
    first, second = guest(served_turns, MANUAL), guest(served_turns, MANUAL)
    ask(first, questions[0])
    ask(second, questions[1])
    second.hear()
    second.ask("message", text="Stop.")
    first.hear()
    first.wait_for("answer_done")
    assert len(first.sounds) == len(alone.sounds)
    for a, b in zip(first.sounds, alone.sounds, strict=True):  # the codes are equal; code2wav's sums round by rows
        assert np.abs(a.astype(int) - b).max(initial=0) <= 1, "one step of PCM16"
    for client in (first, second):
        client.socket.close()


def test_end_returns_the_rest_of_the_answer(served_turns: Served, questions):
    """A file with no silence behind its last word: the bridge listens on in silence until nobody speaks."""
    client = guest(served_turns, SHORT)
    client.socket.send(questions[1][: 12 * TICK].tobytes())
    sound, code = end(client.socket, heard := [])
    kinds = [event["type"] for event in heard]
    assert code == 1000
    assert kinds.index("committed") < kinds.index("answer_started") < kinds.index("answer_done")
    done = next(event for event in heard if event["type"] == "answer_done")
    spoken = np.flatnonzero(sound)
    assert spoken[-1] - spoken[0] > 0.5 * done["spoken_ms"] * 24, "all of it was heard"
    assert len(sound) < 24 * (12 * 320 + 1500 + done["spoken_ms"] + 8 * 320), "and the silence after it is short"
