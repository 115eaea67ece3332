"""How well a server's voice is understood: typed messages, and a recogniser that reads the answers' sound.

Beside it, where the voice that it was trained on can be had, the same sentences by that voice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.progress import track
from rich.table import Table

from benchmarks.dialogue import Answer, at_once, dialogue
from benchmarks.recogniser import Recogniser, word_errors, words_of
from config import Settings
from config.settings import OUTPUT_HZ


class VoiceError(RuntimeError):
    """The messages, or the original voice, cannot be had."""


@dataclass(frozen=True)
class Reading:
    """An answer, and what the recogniser reads from its sound. Errors are of words."""

    message: str
    text: str
    heard: str
    spoken_s: float | None
    words: int
    errors: int
    heard_of_original: str | None = None
    errors_of_original: int | None = None


def bench_voice(settings: Settings, messages: Path, conversations: int, styles: Path | None) -> list[Reading]:
    """An answer to each line of a file. `styles`: folder with the original voice, as training/README.md gets it.

    Raises `VoiceError` and `DialogueError`.
    """
    try:
        lines = [line for line in messages.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise VoiceError(f"{messages} cannot be read: {error}") from error

    async def hold(message: str) -> Answer:
        async with dialogue(settings) as talk:
            await talk.ask("message", text=message)
            return await talk.answer(0)

    answers = asyncio.run(at_once(lines, hold, conversations, "answers"))
    recogniser, original = Recogniser(), _Original(styles) if styles else None
    readings = []
    for message, answer in track(list(zip(lines, answers, strict=True)), description="reading", transient=True):
        said = words_of(answer.text)
        heard = recogniser.transcribe(answer.sound, OUTPUT_HZ)
        reading = Reading(message, answer.text, heard, answer.spoken_s, len(said), word_errors(words_of(heard), said))
        if original:
            heard = recogniser.transcribe(original.say(answer.text), OUTPUT_HZ)
            reading = Reading(**asdict(reading) | {
                "heard_of_original": heard, "errors_of_original": word_errors(words_of(heard), said),
            })  # fmt: skip
        readings.append(reading)
    return readings


class _Original:
    """The voice that the default checkpoint learned from."""

    def __init__(self, styles: Path):
        try:
            from training import synthesize
        except ImportError as error:
            raise VoiceError(f"the original voice needs training/requirements.txt: {error}") from error
        if not (styles / f"{synthesize.VOICE}.bin").is_file():
            raise VoiceError(f"{styles} has no {synthesize.VOICE}.bin: see training/README.md")
        self._voice = synthesize.barista(styles)

    def say(self, text: str) -> np.ndarray:
        """int16 at 24 kHz, in the barista's way of speaking."""
        return (np.clip(self._voice.speak(text)[0], -1, 1) * 32767).astype(np.int16)


def show(readings: Sequence[Reading]) -> Table:
    """Word errors, and what was heard."""
    words = sum(reading.words for reading in readings)
    title = f"Word errors of the voice: {sum(reading.errors for reading in readings) / max(1, words):.1%}"
    if all(reading.errors_of_original is not None for reading in readings):
        title += (
            f", of the original: {sum(reading.errors_of_original or 0 for reading in readings) / max(1, words):.1%}"
        )
    table = Table("answer", "heard", "errors", "spoken", title=title)
    for reading in readings:
        spoken = "without end" if reading.spoken_s is None else f"{reading.spoken_s:.1f} s"
        table.add_row(reading.text, reading.heard, f"{reading.errors}/{reading.words}", spoken)
    return table
