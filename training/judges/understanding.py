"""Acceptance of spoken orders: labelled recordings, clean and in babble noise, each in its own conversation.

The folder is the one of Picovoice's speech-to-intent benchmark: recordings, and `labels.json` with each recording's
slots. The client sends a recording, commits, and reads the answer.
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

from client.sound import SoundError, read_sound, to_pcm16
from config import Settings
from training.judges.acceptance import is_accepted, label_slots, stated_slots
from training.judges.dialogue import dialogue, run_concurrently

BABBLE_SPEAKERS = 6


class UnderstandingError(RuntimeError):
    """A folder of recordings that cannot be read."""


@dataclass(frozen=True)
class OrderResult:
    """The answer to one recording."""

    file: str
    snr_db: float | None  # signal-to-noise ratio of the babble; None: no babble
    label: Mapping[str, str]
    answer: str
    accepted: bool
    spoken_s: float | None  # duration of the answer; None if it did not end in time


def bench_understanding(
    settings: Settings, folder: Path, snrs_db: Sequence[float | None], conversations: int, limit: int | None = None
) -> Sequence[OrderResult]:
    """Send every recording at every level of babble. Raises `UnderstandingError` and `DialogueError`."""
    try:
        labels: dict[str, dict[str, str]] = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnderstandingError(f"{folder}/labels.json cannot be read: {error}") from error
    names = sorted(labels)[:limit]
    try:
        recordings = {name: read_sound(folder / name) for name in names}
    except SoundError as error:
        raise UnderstandingError(str(error)) from error
    jobs = [(name, snr) for snr in snrs_db for name in names]
    return asyncio.run(_send_all(settings, recordings, labels, jobs, conversations))


def add_babble(speech: np.ndarray, others: Sequence[np.ndarray], snr_db: float, seed: str) -> np.ndarray:
    """Return `speech` with several of `others` mixed in at once, `snr_db` decibels below it (mean power)."""
    draw = random.Random(seed)
    babble = np.zeros(len(speech), np.float32)
    for voice in draw.sample(list(others), min(BABBLE_SPEAKERS, len(others))):
        babble += np.resize(np.roll(voice, draw.randrange(len(voice))), len(speech)) / max(1e-6, float(np.std(voice)))
    gain = float(np.std(speech)) / max(1e-6, float(np.std(babble))) * 10 ** (-snr_db / 20)
    return np.asarray(speech + gain * babble, np.float32)


async def _send_all(
    settings: Settings,
    recordings: Mapping[str, np.ndarray],
    labels: Mapping[str, dict[str, str]],
    jobs: Sequence[tuple[str, float | None]],
    conversations: int,
) -> Sequence[OrderResult]:
    async def hold(job: tuple[str, float | None]) -> OrderResult:
        name, snr = job
        audio = recordings[name]
        if snr is not None:
            others = [other for key, other in recordings.items() if key != name]
            audio = add_babble(audio, others, snr, f"{name} {snr}")
        async with dialogue(settings) as talk:
            await talk.send_audio(to_pcm16(audio))
            await talk.send_control("commit")
            answer = await talk.wait_for_answer(0)
        accepted = is_accepted(answer.text, labels[name])
        return OrderResult(name, snr, labels[name], answer.text, accepted, answer.spoken_s)

    return await run_concurrently(jobs, hold, conversations, "orders")


def show(results: Sequence[OrderResult]) -> Table:
    """Return a table of acceptance and wrong slots, a row a level of babble."""
    table = Table(
        "babble", "recordings", "accepted", "longest answer", "wrong slots: count", title="Accepted spoken orders"
    )
    levels = sorted({result.snr_db for result in results}, key=lambda snr: -(1e9 if snr is None else snr))
    for snr in levels:
        rows = [result for result in results if result.snr_db == snr]
        wrong = Counter(slot for row in rows for slot in _wrong_slots(row))
        share = sum(row.accepted for row in rows) / len(rows)
        endless = sum(row.spoken_s is None for row in rows)
        longest = f"{endless} without end" if endless else f"{max(row.spoken_s or 0 for row in rows):.1f} s"
        counts = ", ".join(f"{slot} {count}" for slot, count in wrong.most_common())
        table.add_row("none" if snr is None else f"{snr:g} dB", str(len(rows)), f"{share:.1%}", longest, counts)
    return table


def _wrong_slots(result: OrderResult) -> set[str]:
    return {slot for slot, _ in stated_slots(result.answer) ^ label_slots(result.label)}
