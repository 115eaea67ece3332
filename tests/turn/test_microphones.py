"""Audio of microphones: silence, noise and distorted speech."""

from __future__ import annotations

import numpy as np
import pytest

from engine.engine import Engine
from tests.turns import (
    NO_CONTROLS,
    Script,
    User,
    converse,
    kinds,
    ticks,
)

NOISE = np.random.RandomState(0).randn(16_000 * 120)


@pytest.mark.parametrize(
    "sound",
    [
        pytest.param(np.zeros(16_000 * 20), id="digital silence"),
        pytest.param(np.full(16_000 * 20, 8000.0), id="DC offset"),
        pytest.param(NOISE * 300, id="two minutes of faint noise"),
        pytest.param(NOISE * 6000, id="two minutes of loud noise"),
        pytest.param(8000 * np.sign(np.sin(np.arange(16_000 * 20) * 0.02)), id="a square wave"),
    ],
)
def test_audio_without_speech_opens_no_turn(engine: Engine, frontend, sound):
    """There is no speech and therefore no answer."""

    def script() -> Script:
        for part in ticks(np.clip(sound, -32768, 32767).astype(np.int16)):
            yield part, NO_CONTROLS

    call = converse(engine, frontend, script())
    assert "error" not in kinds(call)
    assert "answer_started" not in kinds(call)


@pytest.mark.parametrize("how", ["clipped", "with a DC offset", "faint"])
def test_speech_of_a_bad_microphone_is_answered(engine: Engine, frontend, questions, how):
    sound = questions[0].astype(np.float64)
    sound = {"clipped": sound * 12, "with a DC offset": sound + 6000, "faint": sound / 30}[how]

    def script() -> Script:
        user = User()
        yield from user.speak(np.clip(sound, -32768, 32767).astype(np.int16))
        yield from user.until_quiet()

    call = converse(engine, frontend, script())
    assert kinds(call)[:3] == ["speech_started", "speech_stopped", "answer_started"]
    assert kinds(call)[-1] == "answer_done"
