"""Behaviour of a server that is interrupted, or that receives noise: false responses, barge-ins, answers without end.

An interruption is speech (flite's voices, with the server's own speech detection) or a typed message.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from config import Settings
from config.settings import INPUT_HZ, OUTPUT_HZ
from training.judges.acceptance import is_accepted
from training.judges.dialogue import Dialogue, dialogue, run_concurrently
from training.judges.flite import synthesize

NOISE_S = 60
LOUDNESS = 0.1  # RMS of the noises
INTERRUPTED_AFTER_S = 0.8  # time from the begin of an answer to its interruption
SPEAKERS = ("rms", "slt", None)  # flite's voices; None: typed messages
LATTE = {"size": "large", "roast": "dark roast", "coffeeDrink": "latte", "milkAmount": "soy milk"}
MOCHA = {"size": "small", "coffeeDrink": "mocha"}
ORDERS = (  # an order, the change that interrupts its answer, and the expected slots after the change
    ("Can I get a large dark roast latte with soy milk?", "make it small", {**LATTE, "size": "small"}),
    ("Can I get a large dark roast latte with soy milk?", "actually a mocha", {**LATTE, "coffeeDrink": "mocha"}),
    ("Give me a large dark roast latte with soy milk", "make it a medium", {**LATTE, "size": "medium"}),
    ("I want a small mocha", "make it large", {**MOCHA, "size": "large"}),
    ("I'd like a small mocha", "actually an espresso", {**MOCHA, "coffeeDrink": "espresso"}),
    ("Can I have a small mocha?", "with almond milk", {**MOCHA, "milkAmount": "almond milk"}),
    ("Get me a small mocha", "with brown sugar please", {**MOCHA, "sugarAmount": "brown sugar"}),
    ("Give me a medium americano", "make it large", {"size": "large", "coffeeDrink": "americano"}),
    ("Can I get a large cappuccino?", "actually a latte", {"size": "large", "coffeeDrink": "latte"}),
    ("I want a medium house coffee", "make it a dark roast",
     {"size": "medium", "coffeeDrink": "house coffee", "roast": "dark roast"}),
)  # fmt: skip


class BargeInError(RuntimeError):
    """A required speech synthesiser is not installed."""


@dataclass(frozen=True)
class Noise:
    """The server's responses to a minute of noise."""

    name: str
    answers: int
    audible_ms: float  # output samples that are not zero


@dataclass(frozen=True)
class Interruption:
    """An order whose answer was interrupted by a change."""

    speaker: str  # a voice of flite, or "typed"
    order: str
    change: str
    first_answer: str  # text before the interruption
    second_answer: str
    was_interrupted: bool
    residual_ms: float  # audio of the first answer after the interruption
    is_right: bool
    spoken_s: float | None  # duration of the second answer


@dataclass(frozen=True)
class BargeInResult:
    """Results for all noises and all interruptions."""

    noises: Sequence[Noise]
    interruptions: Sequence[Interruption]


def bench_barge_in(settings: Settings, conversations: int) -> BargeInResult:
    """Measure noises and interruptions. Raises `BargeInError` and `DialogueError`."""
    if not shutil.which("flite"):
        raise BargeInError("flite is required for the interrupting voices: apt-get install flite")

    async def play_noise(noise: tuple[str, np.ndarray]) -> Noise:
        async with dialogue(settings, "") as talk:
            await talk.send_audio(noise[1])
        output = talk.audio_between(0, len(talk.events))
        answers = sum(event["type"] == "answer_started" for event in talk.events)
        return Noise(noise[0], answers, np.count_nonzero(output) / OUTPUT_HZ * 1000)

    async def interrupt(job: tuple[str | None, tuple[str, str, Mapping[str, str]]]) -> Interruption:
        speaker, (order, change, expected) = job
        async with dialogue(settings, "detection=manual" if speaker is None else "") as talk:
            await _send_turn(talk, order, speaker)
            await talk.wait_for("answer_started", 0)
            await talk.send_audio(np.zeros(int(INTERRUPTED_AFTER_S * INPUT_HZ), np.int16))
            before = len(talk.events)
            await _send_turn(talk, change, speaker)
            stopped = await talk.wait_for("interrupted", 0)
            since = before if stopped is None else stopped
            started = await talk.wait_for("answer_started", since)
            second = await talk.wait_for_answer(since)
        residual = np.zeros(0) if stopped is None or started is None else talk.audio_between(stopped, started)
        first = talk.text_between(0, len(talk.events) if stopped is None else stopped)
        return Interruption(
            speaker or "typed", order, change, first, second.text, stopped is not None,
            np.count_nonzero(residual) / OUTPUT_HZ * 1000, is_accepted(second.text, expected), second.spoken_s,
        )  # fmt: skip

    async def measure() -> BargeInResult:
        noises = await run_concurrently(make_noises().items(), play_noise, conversations, "noise")
        jobs = [(speaker, order) for speaker in SPEAKERS for order in ORDERS]
        return BargeInResult(noises, await run_concurrently(jobs, interrupt, conversations, "interruptions"))

    return asyncio.run(measure())


async def _send_turn(talk: Dialogue, text: str, speaker: str | None) -> None:
    """Send a turn as speech, or as a typed message if `speaker` is None."""
    if speaker is None:
        await talk.send_control("message", text=text)
    else:
        await talk.send_audio(synthesize(text, speaker))


def make_noises() -> dict[str, np.ndarray]:
    """Return a minute of each of several synthetic noises, int16 at 16 kHz."""
    random, samples = np.random.RandomState(1), NOISE_S * INPUT_HZ
    seconds = np.arange(samples) / INPUT_HZ
    white = random.normal(size=samples)
    street = np.cumsum(random.normal(size=samples))  # brown noise
    street -= np.convolve(street, np.ones(1600) / 1600, "same")
    hum = sum(np.sin(2 * np.pi * 120 * k * seconds) / k for k in range(1, 8))
    music = np.zeros(samples)
    for begin in range(0, samples - INPUT_HZ, INPUT_HZ // 2):  # plucked strings, a chord or a note each half second
        for note in random.choice([0, 4, 7, 12, 16, 19], size=1 + random.randint(3), replace=False):
            music[begin : begin + INPUT_HZ] += _plucked_string(220 * 2 ** (note / 12), random)
    clicks = 0.005 * white  # cups and keys
    for begin in random.randint(0, samples - INPUT_HZ // 10, 200):
        clicks[begin : begin + 800] += random.normal(size=800) * np.exp(-np.arange(800) / 250)
    noises = {"white noise": white, "street": street, "hum": hum, "music": music, "clicks": clicks}
    return {
        name: (np.clip(noise / np.std(noise) * LOUDNESS, -1, 1) * 32767).astype(np.int16)
        for name, noise in noises.items()
    }


def _plucked_string(hertz: float, random: np.random.RandomState) -> np.ndarray:
    """Return a second of a plucked string (Karplus and Strong, 1983)."""
    string = random.uniform(-1, 1, round(INPUT_HZ / hertz))
    periods: list[np.ndarray] = []
    while len(periods) * len(string) < INPUT_HZ:
        periods.append(string)
        string = 0.498 * (string + np.roll(string, 1))
    return np.concatenate(periods)[:INPUT_HZ]


def show(result: BargeInResult) -> list[Table]:
    """Return a table of responses to noise, and a table of interruptions with a row a speaker."""
    noises = Table(*("noise, 60 s", "answers", "ms of audio"), title="Responses to noise")
    for noise in result.noises:
        noises.add_row(noise.name, str(noise.answers), f"{noise.audible_ms:.0f}")
    table = Table(
        *("speaker", "orders", "interrupted", "old answer's audio after", "second answer right", "longest answer"),
        title="Answers interrupted by a change",
    )
    for speaker in dict.fromkeys(each.speaker for each in result.interruptions):
        rows = [each for each in result.interruptions if each.speaker == speaker]
        endless = sum(row.spoken_s is None for row in rows)
        table.add_row(
            speaker,
            str(len(rows)),
            str(sum(row.was_interrupted for row in rows)),
            f"{max(row.residual_ms for row in rows):.0f} ms",
            str(sum(row.is_right for row in rows)),
            f"{endless} without end" if endless else f"{max(row.spoken_s or 0 for row in rows):.1f} s",
        )
    return [noises, table]
