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
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.progress import Progress
from rich.table import Table
from websockets.asyncio.client import ClientConnection, connect

from benchmarks.acceptance import is_accepted, label_slots, named_slots
from client.sound import SoundError, read_sound, to_pcm16
from config import Settings
from config.settings import INPUT_HZ, OUTPUT_HZ

FRAME = INPUT_HZ // 10  # samples
AHEAD_S = 2.0  # of sound that may be sent before its answer has come
ANSWER_WITHIN_S = 20.0  # of the input clock after the commit
TALKERS = 6  # of babble


class UnderstandingError(RuntimeError):
    """The folder cannot be read, or the server refused."""


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
) -> list[Heard]:
    """Every recording at every level of babble. Raises `UnderstandingError`."""
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
) -> list[Heard]:
    url = f"ws://{settings.bridge.host}:{settings.bridge.port}/ws/pcm16?detection=manual"
    waiting, found = iter(jobs), []
    with Progress(transient=True) as progress:
        task = progress.add_task("orders", total=len(jobs))

        async def worker() -> None:
            for name, snr in waiting:
                sound = sounds[name]
                if snr is not None:
                    others = [other for key, other in sounds.items() if key != name]
                    sound = in_babble(sound, others, snr, f"{name} {snr}")
                answer, spoken_s = await _ask(url, sound)
                found.append(Heard(name, snr, labels[name], answer, is_accepted(answer, labels[name]), spoken_s))
                progress.advance(task)

        await asyncio.gather(*(worker() for _ in range(conversations)))
    return found


async def _ask(url: str, sound: np.ndarray) -> tuple[str, float | None]:
    """The answer's text to one recording, and how many seconds it spoke; None if it did not end."""
    pcm = to_pcm16(sound)
    async with connect(url, max_size=None, proxy=None) as socket:
        question = _Question(socket)
        listening = asyncio.create_task(question.listen())
        for start in range(0, len(pcm), FRAME):
            await question.say(pcm[start : start + FRAME])
        await socket.send(json.dumps({"type": "commit"}))
        limit = question.sent + ANSWER_WITHIN_S * INPUT_HZ
        while not question.is_over.is_set():
            await question.say(np.zeros(FRAME, np.int16))
            if question.sent > limit:
                listening.cancel()
                return question.text, None
        await listening
        await socket.send(json.dumps({"type": "end"}))
        async for _ in socket:  # until the bridge has closed: its place is free again then
            pass
        return question.text, question.spoken_s


class _Question:
    """One conversation: what is sent stays a little ahead of what came back, since the clock is the sound's."""

    def __init__(self, socket: ClientConnection):
        self._socket = socket
        self.sent = self._received = 0  # samples
        self.is_over = asyncio.Event()
        self.text, self.spoken_s = "", 0.0

    async def say(self, samples: np.ndarray) -> None:
        """Sends samples, int16 at 16 kHz."""
        while self.sent / INPUT_HZ - self._received / OUTPUT_HZ > AHEAD_S and not self.is_over.is_set():
            await asyncio.sleep(0.002)
        await self._socket.send(samples.tobytes())
        self.sent += len(samples)

    async def listen(self) -> None:
        """Until the answer is over. Raises `UnderstandingError` with an error's words."""
        try:
            async for message in self._socket:
                if isinstance(message, bytes):
                    self._received += len(message) // 2
                    continue
                event = json.loads(message)
                if event["type"] == "error":
                    raise UnderstandingError(event["message"])
                if event["type"] == "text":
                    self.text += event["text"]
                elif event["type"] == "answer_done":
                    self.spoken_s = event["spoken_ms"] / 1000
                    return
        finally:
            self.is_over.set()


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


def write(found: Sequence[Heard], path: Path) -> None:
    """Every answer as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(heard) for heard in found], indent=1), encoding="utf-8")


def _wrong_slots(heard: Heard) -> set[str]:
    return {slot for slot, _ in named_slots(heard.answer) ^ label_slots(heard.label)}
