"""How a server behaves in conversation: to noise, when it is interrupted, and whether its answers end.

Who interrupts speaks (flite's voices, with the server's own detection of speech) or types.
"""

from __future__ import annotations

import asyncio
import io
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import soundfile
import soxr
from rich.table import Table

from benchmarks.acceptance import is_accepted
from benchmarks.dialogue import Dialogue, at_once, dialogue
from config import Settings
from config.settings import INPUT_HZ, OUTPUT_HZ

NOISE_S = 60
LOUDNESS = 0.1  # RMS of what is no speech
LATE_S = 0.8  # of an answer, before it is interrupted
SPEAKERS = ("rms", "slt", None)  # flite's voices; None types
LATTE = {"size": "large", "roast": "dark roast", "coffeeDrink": "latte", "milkAmount": "soy milk"}
MOCHA = {"size": "small", "coffeeDrink": "mocha"}
ORDERS = (  # what is ordered, what is said into the answer, and what is ordered then
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


class MannersError(RuntimeError):
    """A voice is missing."""


@dataclass(frozen=True)
class Quiet:
    """A minute of something that is no speech."""

    what: str
    answers: int
    sounding_ms: float  # of what was heard, not silent


@dataclass(frozen=True)
class Interruption:
    """An order whose answer was interrupted by a change."""

    speaker: str  # or "typed"
    order: str
    change: str
    first: str  # what was said before the interruption
    second: str
    was_interrupted: bool
    left_ms: float  # of the old answer's sound, after the interruption
    is_right: bool
    spoken_s: float | None  # of the second answer


@dataclass(frozen=True)
class Manners:
    """All of it."""

    quiet: Sequence[Quiet]
    interruptions: Sequence[Interruption]


def bench_manners(settings: Settings, conversations: int) -> Manners:
    """All of it. Raises `MannersError` and `DialogueError`."""
    if not shutil.which("flite"):
        raise MannersError("the voices that interrupt are flite's: apt-get install flite")

    async def sit_through(sound: tuple[str, np.ndarray]) -> Quiet:
        async with dialogue(settings, "") as talk:
            await talk.say(sound[1])
        heard = talk.sound(0, len(talk.events))
        answers = sum(event["type"] == "answer_started" for event in talk.events)
        return Quiet(sound[0], answers, np.count_nonzero(heard) / OUTPUT_HZ * 1000)

    async def interrupt(job: tuple[str | None, tuple[str, str, Mapping[str, str]]]) -> Interruption:
        speaker, (order, change, wanted) = job
        async with dialogue(settings, "detection=manual" if speaker is None else "") as talk:
            await _tell(talk, order, speaker)
            await talk.wait_for("answer_started", 0)
            await talk.say(np.zeros(int(LATE_S * INPUT_HZ), np.int16))
            before = len(talk.events)
            await _tell(talk, change, speaker)
            stopped = await talk.wait_for("interrupted", 0)
            begun = await talk.wait_for("answer_started", before if stopped is None else stopped)
            second = await talk.answer(before if stopped is None else stopped)
        left = np.zeros(0) if stopped is None or begun is None else talk.sound(stopped, begun)
        first = talk.text(0, len(talk.events) if stopped is None else stopped)
        return Interruption(
            speaker or "typed", order, change, first, second.text, stopped is not None,
            np.count_nonzero(left) / OUTPUT_HZ * 1000, is_accepted(second.text, wanted), second.spoken_s,
        )  # fmt: skip

    async def everything() -> Manners:
        quiet = await at_once(no_speech().items(), sit_through, conversations, "no speech")
        jobs = [(speaker, order) for speaker in SPEAKERS for order in ORDERS]
        return Manners(quiet, await at_once(jobs, interrupt, conversations, "interruptions"))

    return asyncio.run(everything())


async def _tell(talk: Dialogue, words: str, speaker: str | None) -> None:
    """Says or types a turn, up to its end."""
    if speaker is None:
        await talk.ask("message", text=words)
    else:
        await talk.say(said_by_flite(words, speaker))


def said_by_flite(words: str, voice: str) -> np.ndarray:
    """A sentence by one of flite's voices, int16 at 16 kHz."""
    command = ["flite", "-voice", voice, "-t", words, "-o", "/dev/stdout"]
    wav = subprocess.run(command, capture_output=True, check=True)
    samples, rate = soundfile.read(io.BytesIO(wav.stdout), dtype="float32")
    return (soxr.resample(samples, rate, INPUT_HZ) * 32767).astype(np.int16)


def no_speech() -> dict[str, np.ndarray]:
    """A minute of each of several sounds that are no speech, int16 at 16 kHz, from no recording."""
    random, samples = np.random.RandomState(1), NOISE_S * INPUT_HZ
    seconds = np.arange(samples) / INPUT_HZ
    white = random.normal(size=samples)
    street = np.cumsum(random.normal(size=samples))  # brown noise
    street -= np.convolve(street, np.ones(1600) / 1600, "same")
    hum = sum(np.sin(2 * np.pi * 120 * k * seconds) / k for k in range(1, 8))
    music = np.zeros(samples)
    for begin in range(0, samples - INPUT_HZ, INPUT_HZ // 2):  # plucked strings, a chord or a note each half second
        for note in random.choice([0, 4, 7, 12, 16, 19], size=1 + random.randint(3), replace=False):
            music[begin : begin + INPUT_HZ] += _plucked(220 * 2 ** (note / 12), random)
    clicks = 0.005 * white  # cups and keys
    for begin in random.randint(0, samples - INPUT_HZ // 10, 200):
        clicks[begin : begin + 800] += random.normal(size=800) * np.exp(-np.arange(800) / 250)
    sounds = {"white noise": white, "street": street, "hum": hum, "music": music, "clicks": clicks}
    return {
        name: (np.clip(sound / np.std(sound) * LOUDNESS, -1, 1) * 32767).astype(np.int16)
        for name, sound in sounds.items()
    }


def _plucked(hertz: float, random: np.random.RandomState) -> np.ndarray:
    """A second of a plucked string (Karplus and Strong)."""
    string = random.uniform(-1, 1, round(INPUT_HZ / hertz))
    sound: list[np.ndarray] = []
    while len(sound) * len(string) < INPUT_HZ:
        sound.append(string)
        string = 0.498 * (string + np.roll(string, 1))
    return np.concatenate(sound)[:INPUT_HZ]


def show(found: Manners) -> list[Table]:
    """What was answered that should not be; and interruptions, a line a speaker."""
    noises = Table(*("sound, 60 s", "answers", "ms of sound"), title="What is no speech")
    for noise in found.quiet:
        noises.add_row(noise.what, str(noise.answers), f"{noise.sounding_ms:.0f}")
    table = Table(
        *("speaker", "orders", "interrupted", "old answer heard after", "second answer right", "longest answer"),
        title="Answers interrupted by a change",
    )
    for speaker in dict.fromkeys(each.speaker for each in found.interruptions):
        rows = [each for each in found.interruptions if each.speaker == speaker]
        endless = sum(row.spoken_s is None for row in rows)
        table.add_row(
            speaker,
            str(len(rows)),
            str(sum(row.was_interrupted for row in rows)),
            f"{max(row.left_ms for row in rows):.0f} ms",
            str(sum(row.is_right for row in rows)),
            f"{endless} without end" if endless else f"{max(row.spoken_s or 0 for row in rows):.1f} s",
        )
    return [noises, table]
