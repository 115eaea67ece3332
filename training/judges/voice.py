"""Intelligibility of a server's voice: typed messages, and a speech recogniser that transcribes the spoken answers.

If the voice that the checkpoint was trained on is available, the same sentences by that voice are transcribed too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.progress import track
from rich.table import Table

from config import Settings
from config.settings import OUTPUT_HZ
from training.judges.dialogue import Answer, dialogue, run_concurrently
from training.judges.recogniser import Recogniser, word_errors, words_of

MESSAGES = Path(__file__).parent / "messages.txt"  # default messages, one a line


class VoiceError(RuntimeError):
    """Messages or an original voice that cannot be read."""


@dataclass(frozen=True)
class Transcript:
    """An answer, and the recogniser's transcript of its audio; errors are word errors."""

    message: str
    text: str
    recognised: str
    spoken_s: float | None
    words: int
    errors: int
    recognised_original: str | None = None
    errors_original: int | None = None


def bench_voice(settings: Settings, messages: Path, conversations: int, styles: Path | None) -> list[Transcript]:
    """Request an answer to each line of a file. `styles`: folder of the original voice, see training/README.md.

    Raises `VoiceError` and `DialogueError`.
    """
    try:
        lines = [line for line in messages.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise VoiceError(f"{messages} cannot be read: {error}") from error

    async def hold(message: str) -> Answer:
        async with dialogue(settings) as talk:
            await talk.send_control("message", text=message)
            return await talk.wait_for_answer(0)

    answers = asyncio.run(run_concurrently(lines, hold, conversations, "answers"))
    recogniser, original = Recogniser(), _OriginalVoice(styles) if styles else None
    transcripts = []
    for message, answer in track(list(zip(lines, answers, strict=True)), description="recognition", transient=True):
        words = words_of(answer.text)
        recognised = recogniser.transcribe(answer.audio, OUTPUT_HZ)
        errors = word_errors(words_of(recognised), words)
        transcript = Transcript(message, answer.text, recognised, answer.spoken_s, len(words), errors)
        if original:
            recognised = recogniser.transcribe(original.speak(answer.text), OUTPUT_HZ)
            errors = word_errors(words_of(recognised), words)
            transcript = replace(transcript, recognised_original=recognised, errors_original=errors)
        transcripts.append(transcript)
    return transcripts


class _OriginalVoice:
    """The voice that the default checkpoint was trained on."""

    def __init__(self, styles: Path):
        try:
            from training import synthesize
        except ImportError as error:
            raise VoiceError(f"the original voice needs training/requirements.txt: {error}") from error
        if not (styles / f"{synthesize.VOICE}.bin").is_file():
            raise VoiceError(f"{styles} has no {synthesize.VOICE}.bin: see training/README.md")
        self._voice = synthesize.barista(styles)

    def speak(self, text: str) -> np.ndarray:
        """Return a sentence, int16 at 24 kHz."""
        return (np.clip(self._voice.speak(text)[0], -1, 1) * 32767).astype(np.int16)


def show(transcripts: Sequence[Transcript]) -> Table:
    """Return a table of the transcripts; its title has the word error rates."""
    words = max(1, sum(each.words for each in transcripts))
    title = f"Word error rate of the voice: {sum(each.errors for each in transcripts) / words:.1%}"
    if all(each.errors_original is not None for each in transcripts):
        title += f", of the original: {sum(each.errors_original or 0 for each in transcripts) / words:.1%}"
    table = Table("answer", "recognised", "errors", "spoken", title=title)
    for each in transcripts:
        spoken = "without end" if each.spoken_s is None else f"{each.spoken_s:.1f} s"
        table.add_row(each.text, each.recognised, f"{each.errors}/{each.words}", spoken)
    return table
