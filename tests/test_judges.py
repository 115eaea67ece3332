"""The judges of the model card's scores: clients of a server that score its answers."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest
import soundfile

from config import Settings
from config.settings import INPUT_HZ, OUTPUT_HZ
from tests.conftest import Served
from tests.test_barista import MAX_ANSWER_MS
from training.judges import barge_in, understanding, voice
from training.judges.dialogue import DialogueError, dialogue, write_json
from training.judges.flite import synthesize


def test_voice_answers_are_transcribed_by_a_recogniser(served_barista: Served, tmp_path):
    (tmp_path / "messages.txt").write_text("Give me a large dark roast espresso\n\nHello.\n")
    transcripts = voice.bench_voice(served_barista.settings, tmp_path / "messages.txt", 1, None)
    assert [each.message for each in transcripts] == ["Give me a large dark roast espresso", "Hello."]
    assert transcripts[0].text.startswith("Okay, a large dark roast espresso")
    assert transcripts[0].words == 8
    assert transcripts[0].recognised
    assert 0 <= transcripts[0].errors <= 12
    assert 1 < transcripts[0].spoken_s < MAX_ANSWER_MS / 1000
    assert str(sum(each.errors for each in transcripts)) not in ("", "0"), (
        "the recogniser makes errors with every voice"
    )
    write_json(transcripts, tmp_path / "voice.json")
    assert json.loads((tmp_path / "voice.json").read_text())[0]["text"] == transcripts[0].text
    assert "Word error rate of the voice" in str(voice.show(transcripts).title)


def test_missing_requirements_of_the_voice_judge_are_named(tmp_path):
    settings = Settings.load(environ={})
    with pytest.raises(voice.VoiceError, match=r"none\.txt cannot be read"):
        voice.bench_voice(settings, tmp_path / "none.txt", 1, None)
    with pytest.raises(voice.VoiceError, match=r"training/requirements\.txt|has no af_heart\.bin"):
        voice._OriginalVoice(tmp_path)


def test_interruptions_and_noise_are_scored(served_barista: Served, monkeypatch, tmp_path):
    order, change, expected = barge_in.ORDERS[3]
    monkeypatch.setattr(barge_in, "ORDERS", ((order, change, expected), (order, "make it large", {"size": "small"})))
    monkeypatch.setattr(barge_in, "SPEAKERS", ("rms", None))
    monkeypatch.setattr(barge_in, "NOISE_S", 2)
    result = barge_in.bench_barge_in(served_barista.settings, 2)
    noises, interruptions = result.noises, result.interruptions
    assert {noise.name for noise in noises} == {"white noise", "street", "hum", "music", "clicks"}
    assert {noise.audible_ms for noise in noises} == {0}
    assert [each.speaker for each in interruptions] == ["rms", "rms", "typed", "typed"]
    assert all(each.was_interrupted and each.residual_ms == 0 for each in interruptions)
    typed = interruptions[2:]
    assert typed[0].first_answer.startswith("Okay, a small")
    assert [each.is_right for each in typed] == [True, False], typed
    write_json(result, tmp_path / "barge_in.json")
    assert len(json.loads((tmp_path / "barge_in.json").read_text())["interruptions"]) == 4


def test_noises_have_the_loudness_of_speech():
    for name, noise in barge_in.make_noises().items():
        assert len(noise) == barge_in.NOISE_S * INPUT_HZ
        level = np.std(noise / 32768)
        assert barge_in.LOUDNESS / 2 < level <= barge_in.LOUDNESS * 1.01, f"{name} {level}"


def test_recorded_order_is_scored(served_barista: Served, tmp_path):
    text = "Give me a large cappuccino"
    soundfile.write(tmp_path / "a.wav", synthesize(text, "rms"), INPUT_HZ)
    label = {"size": "large", "coffeeDrink": "cappuccino"}
    (tmp_path / "labels.json").write_text(json.dumps({"a.wav": label}))
    (result,) = understanding.bench_understanding(served_barista.settings, tmp_path, [None], 1)
    assert result.accepted == (result.answer.split(". ")[0] == "Okay, a large cappuccino")
    assert result.spoken_s
    assert 1 < result.spoken_s < MAX_ANSWER_MS / 1000


def test_audio_of_an_answer_contains_this_answer_only(served_barista: Served):
    """The audio begins with the tick in which the answer begins, and contains the answer's last samples."""

    async def talk() -> None:
        async with dialogue(served_barista.settings) as client:
            await client.send_control("message", text="Hello.")
            first = await client.wait_for_answer(0)
            since = len(client.events)
            await client.send_audio(np.zeros(INPUT_HZ, np.int16))
            await client.send_control("message", text="Hello.")
            second = await client.wait_for_answer(since)
        for answer in (first, second):
            audible = np.flatnonzero(answer.audio)
            assert audible[0] < OUTPUT_HZ // 3
            assert not answer.audio[-OUTPUT_HZ // 20 :].any()
            assert abs(np.ptp(audible) / OUTPUT_HZ - answer.spoken_s) < 0.2
        assert first.text == second.text == "Hello. What would you like to drink?"

    asyncio.run(talk())


def test_server_error_is_raised(served_barista: Served):
    async def refused() -> None:
        async with dialogue(served_barista.settings, "voice=nobody") as client:
            await client.wait_for_answer(0)

    with pytest.raises(DialogueError, match="nobody"):
        asyncio.run(refused())
