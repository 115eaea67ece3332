"""Turn taking: when a turn begins and ends, and when its answer begins."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from contract.controls import Controls
from engine.engine import Engine
from engine.turn.detection import TurnDetector
from engine.vad import WINDOW, Vad, VadState
from export.mel_frontend import MelFrontend
from tests.turns import (
    MANUAL,
    NO_CONTROLS,
    TICK,
    Script,
    User,
    asking,
    converse,
    event_of,
    kinds,
    spoken_frames,
)


def test_end_of_speech_is_answered_in_its_tick(engine: Engine, frontend, questions):
    def script() -> Script:
        user = User()
        yield from user.speak(questions[0])
        yield from user.until_quiet()

    call = converse(engine, frontend, script())
    assert kinds(call)[:3] == ["speech_started", "speech_stopped", "answer_started"]
    stopped, started = event_of(call, "speech_stopped"), event_of(call, "answer_started")
    assert 0 <= started.at_ms - stopped.at_ms < 320
    assert started.audio_end_ms == stopped.at_ms // 10 * 10
    speech_ms = event_of(call, "speech_started").at_ms
    assert started.audio_start_ms == max(0, (speech_ms // 10 - 30) * 10), "300 ms before the speech belong to it"
    first = spoken_frames(call).index(4)
    assert (first + 1) * 320 == started.at_ms, "the answer begins in the tick in which the turn ends"
    assert kinds(call)[3:] == ["answer_done"]
    done = event_of(call, "answer_done")
    assert done.spoken_ms == 80 * sum(spoken_frames(call))
    assert done.text == "".join(spoken.text for spoken in call.spoken)


def test_text_is_never_ahead_of_the_codec_frames(talkative: Engine, frontend, questions):
    call = converse(talkative, frontend, asking(questions[0][: 6 * TICK], then=20), **MANUAL)
    for spoken in call.spoken[5:]:
        assert len(spoken.tokens) <= int((spoken.codes[0] >= 0).sum()) == 4, "one token per frame, four frames per tick"


@pytest.mark.parametrize("tick_ms", [80, 160])
def test_shorter_ticks_give_the_same_answer(checkpoint, turn_settings, extractor, engine, frontend, questions, tick_ms):
    """The audio of the turn is the same."""
    sound = questions[0][: 8 * TICK]
    expected = converse(engine, frontend, asking(sound), **MANUAL).answers[0]
    short = Engine(checkpoint, turn_settings.with_values(audio={"tick_ms": tick_ms}, engine={"slots": 1}))
    samples = tick_ms * 16

    def script() -> Script:
        parts = sound.reshape(-1, samples)
        for i, part in enumerate(parts):
            yield part, Controls(commit=i == len(parts) - 1)
        for _ in range(30 * 320 // tick_ms):
            yield np.zeros(samples, np.int16), NO_CONTROLS

    found = converse(short, MelFrontend(extractor, samples), script(), **MANUAL).answers[0]
    assert found.tokens == expected.tokens
    assert torch.equal(torch.cat(found.codes, dim=1), torch.cat(expected.codes, dim=1))


def test_vad_state_carries_windows_over_ticks(questions):
    """Probabilities do not depend on how a stream is divided, nor on other streams in the batch."""
    vad, sound = Vad(), questions[0][: 40 * TICK // 8]
    (whole,) = vad(VadState(1), [0], [sound])
    assert len(whole) == len(sound) // WINDOW
    assert max(whole) > 0.9
    for size in (1280, 2560, 5120, 777):
        state, parts = VadState(1), []
        for start in range(0, len(sound), size):
            parts += vad(state, [0], [sound[start : start + size]])[0]
        assert parts == pytest.approx(whole, abs=1e-6)
    together = vad(VadState(40), list(range(40)), [sound, *[sound[: WINDOW * (i % 3)] for i in range(38)], sound])
    assert together[0] == whole
    assert together[-1] == whole


def feed(detector: TurnDetector, probabilities: list[float]) -> None:
    for probability in probabilities:
        detector.feed(probability)


def test_detector_follows_probabilities(turn_settings):
    """Each probability is of 32 ms; speech ends after 500 ms below 0.35."""
    detector = TurnDetector(turn_settings.turn)
    feed(detector, [0.1, 0.49])
    assert not detector.is_speech
    feed(detector, [0.5])
    assert detector.is_speech
    assert detector.started_ms == 64
    feed(detector, [0.4] * 40)
    assert detector.is_speech, "not below 0.35"
    feed(detector, [0.3] * 15)
    assert detector.is_speech, "480 ms"
    feed(detector, [0.9])
    assert detector.spoken_ms == 32 * (3 + 40 + 15 + 1) - 64
    feed(detector, [0.3] * 16)
    assert not detector.is_speech
    assert detector.stopped_ms == 32 * (3 + 40 + 15 + 1 + 16)
    assert detector.spoken_ms == 32 * (40 + 15 + 1 + 1), "without the silence at its end"
