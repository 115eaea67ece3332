"""How well a server takes spoken orders: a folder of recordings with labels, clean and in babble, each a conversation.

The folder is one of Picovoice's speech-to-intent benchmark: recordings, and `labels.json` with each recording's slots.
The client is any client: it sends a recording, commits, and reads the answer.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from benchmarks.acceptance import is_accepted, label_slots, named_slots
from benchmarks.dialogue import at_once, dialogue
from client.sound import SoundError, read_sound, to_pcm16
from config import Settings

TALKERS = 6  # of babble


class UnderstandingError(RuntimeError):
    """The folder cannot be read."""


@dataclass(frozen=True)
class Heard:
    """One recording's answer."""

    file: str
    snr_db: float | None  # of babble; None: as it is
    label: Mapping[str, str]
    answer: str
    accepted: bool
    spoken_s: float | None  # of the answer; None if it did not end in time


def bench_understanding(
    settings: Settings, folder: Path, snrs_db: Sequence[float | None], conversations: int, limit: int | None = None
) -> Sequence[Heard]:
    """Every recording at every level of babble. Raises `UnderstandingError` and `DialogueError`."""
    try:
        labels: dict[str, dict[str, str]] = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnderstandingError(f"{folder}/labels.json cannot be read: {error}") from error
    names = sorted(labels)[:limit]
    try:
        sounds = {name: read_sound(folder / name) for name in names}
    except SoundError as error:
        raise UnderstandingError(str(error)) from error
    jobs = [(name, snr) for snr in snrs_db for name in names]
    return asyncio.run(_all(settings, sounds, labels, jobs, conversations))


def in_babble(sound: np.ndarray, others: Sequence[np.ndarray], snr_db: float, seed: str) -> np.ndarray:
    """`sound` with several of `others` spoken at once, so many decibels below it (by their mean power)."""
    draw = random.Random(seed)
    babble = np.zeros(len(sound), np.float32)
    for voice in draw.sample(list(others), min(TALKERS, len(others))):
        babble += np.resize(np.roll(voice, draw.randrange(len(voice))), len(sound)) / max(1e-6, float(np.std(voice)))
    gain = float(np.std(sound)) / max(1e-6, float(np.std(babble))) * 10 ** (-snr_db / 20)
    return np.asarray(sound + gain * babble, np.float32)


async def _all(
    settings: Settings,
    sounds: Mapping[str, np.ndarray],
    labels: Mapping[str, dict[str, str]],
    jobs: Sequence[tuple[str, float | None]],
    conversations: int,
) -> Sequence[Heard]:
    async def hold(job: tuple[str, float | None]) -> Heard:
        name, snr = job
        sound = sounds[name]
        if snr is not None:
            others = [other for key, other in sounds.items() if key != name]
            sound = in_babble(sound, others, snr, f"{name} {snr}")
        async with dialogue(settings) as talk:
            await talk.say(to_pcm16(sound))
            await talk.ask("commit")
            answer = await talk.answer(0)
        return Heard(name, snr, labels[name], answer.text, is_accepted(answer.text, labels[name]), answer.spoken_s)

    return await at_once(jobs, hold, conversations, "orders")


def show(found: Sequence[Heard]) -> Table:
    """Acceptance by level of babble, and which slots were wrong."""
    table = Table(
        "babble", "recordings", "accepted", "longest answer", "slots wrong: times", title="Spoken orders taken exactly"
    )
    levels = sorted({heard.snr_db for heard in found}, key=lambda snr: -(1e9 if snr is None else snr))
    for snr in levels:
        rows = [heard for heard in found if heard.snr_db == snr]
        wrong = Counter(slot for row in rows for slot in _wrong_slots(row))
        share = sum(row.accepted for row in rows) / len(rows)
        endless = sum(row.spoken_s is None for row in rows)
        longest = f"{endless} without end" if endless else f"{max(row.spoken_s or 0 for row in rows):.1f} s"
        told = ", ".join(f"{slot} {count}" for slot, count in wrong.most_common())
        table.add_row("none" if snr is None else f"{snr:g} dB", str(len(rows)), f"{share:.1%}", longest, told)
    return table


def _wrong_slots(heard: Heard) -> set[str]:
    return {slot for slot, _ in named_slots(heard.answer) ^ label_slots(heard.label)}
