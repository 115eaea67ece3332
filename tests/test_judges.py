"""What the model card's scores are made of: programs that talk to a server as clients and judge its answers."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest
import soundfile

from benchmarks import manners, understanding, voice
from benchmarks.dialogue import DialogueError, dialogue, write
from benchmarks.manners import said_by_flite
from config import Settings
from config.settings import INPUT_HZ, OUTPUT_HZ
from tests.conftest import Served
from tests.test_barista import LONGEST_ANSWER_MS


def test_an_answer_is_read_by_a_recogniser(served_barista: Served, tmp_path):
    (tmp_path / "messages.txt").write_text("Give me a large dark roast espresso\n\nHello.\n")
    readings = voice.bench_voice(served_barista.settings, tmp_path / "messages.txt", 1, None)
    assert [reading.message for reading in readings] == ["Give me a large dark roast espresso", "Hello."]
    assert readings[0].text.startswith("Okay, a large dark roast espresso")
    assert readings[0].words == 8
    assert readings[0].heard
    assert 0 <= readings[0].errors <= 12
    assert 1 < readings[0].spoken_s < LONGEST_ANSWER_MS / 1000
    assert str(sum(reading.errors for reading in readings)) not in ("", "0"), "no voice here is that clear"
    write(readings, tmp_path / "voice.json")
    assert json.loads((tmp_path / "voice.json").read_text())[0]["text"] == readings[0].text
    assert "Word errors of the voice" in str(voice.show(readings).title)


def test_what_the_voice_bench_needs_is_named(tmp_path):
    settings = Settings.load(environ={})
    with pytest.raises(voice.VoiceError, match=r"none\.txt cannot be read"):
        voice.bench_voice(settings, tmp_path / "none.txt", 1, None)
    with pytest.raises(voice.VoiceError, match=r"training/requirements\.txt|has no af_heart\.bin"):
        voice._Original(tmp_path)


def test_an_interruption_and_noise_are_judged(served_barista: Served, monkeypatch, tmp_path):
    order, change, wanted = manners.ORDERS[3]
    monkeypatch.setattr(manners, "ORDERS", ((order, change, wanted), (order, "make it large", {"size": "small"})))
    monkeypatch.setattr(manners, "SPEAKERS", ("rms", None))
    monkeypatch.setattr(manners, "NOISE_S", 2)
    found = manners.bench_manners(served_barista.settings, 2)
    quiet, interruptions = found.quiet, found.interruptions
    assert {noise.what for noise in quiet} == {"white noise", "street", "hum", "music", "clicks"}
    assert {noise.sounding_ms for noise in quiet} == {0}
    assert [each.speaker for each in interruptions] == ["rms", "rms", "typed", "typed"]
    assert all(each.was_interrupted and each.left_ms == 0 for each in interruptions)
    typed = interruptions[2:]
    assert typed[0].first.startswith("Okay, a small")
    assert [each.is_right for each in typed] == [True, False], typed
    write(found, tmp_path / "manners.json")
    assert len(json.loads((tmp_path / "manners.json").read_text())["interruptions"]) == 4


def test_sounds_that_are_no_speech_are_as_loud_as_speech():
    for name, sound in manners.no_speech().items():
        assert len(sound) == manners.NOISE_S * INPUT_HZ
        level = np.std(sound / 32768)
        assert manners.LOUDNESS / 2 < level <= manners.LOUDNESS * 1.01, f"{name} {level}"


def test_a_recorded_order_is_judged(served_barista: Served, tmp_path):
    words = "Give me a large cappuccino"
    soundfile.write(tmp_path / "a.wav", said_by_flite(words, "rms"), INPUT_HZ)
    label = {"size": "large", "coffeeDrink": "cappuccino"}
    (tmp_path / "labels.json").write_text(json.dumps({"a.wav": label}))
    (heard,) = understanding.bench_understanding(served_barista.settings, tmp_path, [None], 1)
    assert heard.accepted == (heard.answer.split(". ")[0] == "Okay, a large cappuccino")
    assert heard.spoken_s
    assert 1 < heard.spoken_s < LONGEST_ANSWER_MS / 1000


def test_the_sound_of_an_answer_is_the_answers_alone(served_barista: Served):
    """A dialogue's sound begins with the tick that the answer begins in, and its last samples are in it."""

    async def talk() -> None:
        async with dialogue(served_barista.settings) as client:
            await client.ask("message", text="Hello.")
            first = await client.answer(0)
            place = len(client.events)
            await client.say(np.zeros(INPUT_HZ, np.int16))
            await client.ask("message", text="Hello.")
            second = await client.answer(place)
        for answer in (first, second):
            sounding = np.flatnonzero(answer.sound)
            assert sounding[0] < OUTPUT_HZ // 3
            assert not answer.sound[-OUTPUT_HZ // 20 :].any()
            assert abs(np.ptp(sounding) / OUTPUT_HZ - answer.spoken_s) < 0.2
        assert first.text == second.text == "Hello. What would you like to drink?"

    asyncio.run(talk())


def test_what_the_server_refuses_is_told(served_barista: Served):
    async def refused() -> None:
        async with dialogue(served_barista.settings, "voice=nobody") as client:
            await client.answer(0)

    with pytest.raises(DialogueError, match="nobody"):
        asyncio.run(refused())
