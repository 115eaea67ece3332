"""./sca replay: a recorded conversation through the server again, and where its answer differs."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from commands.console import UserError, load_settings
from config import Settings
from frontend.recording import RecordedTick, RecordingError, read_recording
from frontend.tick import TickError, TickIn, TickOut, new_sequence_id
from frontend.triton import TritonLink

IDENTICAL, DIFFERENT = 0, 1
ROUNDING = 1
"""Step of PCM16, by which a sound differs where one of its ticks shared code2wav's batch with another conversation's:
sums round by rows. The bridge's own question whether the engine answers is a conversation, too."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("recording", type=Path, metavar="RECORDING.wav", help="its .jsonl lies beside it")


def run(arguments: argparse.Namespace) -> int:
    """Replays, and prints the first tick of each kind of difference; the exit status is 1 if there is any."""
    settings = load_settings()
    try:
        ticks = read_recording(arguments.recording)
        if len(ticks[0].said) != settings.audio.input_samples:
            raise UserError(
                f"{arguments.recording} has ticks of {len(ticks[0].said)} samples, "
                f"expected {settings.audio.input_samples} (audio.tick_ms)"
            )
        answers = asyncio.run(replay(settings, ticks))
    except (RecordingError, TickError) as error:
        raise UserError(str(error)) from error
    seconds = len(ticks) * settings.audio.tick_ms / 1000
    found = differences(ticks, answers, settings.audio.tick_ms)
    if not found:
        print(f"the same answer: {len(ticks)} ticks, {seconds:.1f} s")
        return IDENTICAL
    print("\n".join(found))
    return DIFFERENT


async def replay(settings: Settings, ticks: Sequence[RecordedTick]) -> list[TickOut | TickError]:
    """The answers to a recording's ticks. Raises `TickError` where there is no Triton."""
    room = asyncio.Semaphore(settings.bridge.ticks_in_flight)

    async def said() -> AsyncIterator[TickIn]:
        for number, tick in enumerate(ticks):
            await room.acquire()
            ends = number == len(ticks) - 1
            pcm, tick_ms = tick.said.tobytes(), settings.audio.tick_ms
            yield TickIn.from_parameters(pcm, tick.parameters, tick_ms, start=number == 0, end=ends)

    link = TritonLink(settings)
    answers = []
    try:
        async for answer in link.converse(new_sequence_id(), said()):
            room.release()
            answers.append(answer)
    finally:
        await link.close()
    return answers


def differences(ticks: Sequence[RecordedTick], answers: Sequence[TickOut | TickError], tick_ms: int) -> list[str]:
    """A line for the first tick whose error, text, events or sound differ; none where all is the same.

    Sound differs where it does by more than `ROUNDING`.
    """
    lines: dict[str, str] = {}
    for number, (tick, answer) in enumerate(zip(ticks, answers, strict=True)):
        for what, recorded, now in _compared(tick, answer):
            if recorded != now and what not in lines:
                lines[what] = (
                    f"{what} differs from tick {number} on ({number * tick_ms / 1000:.2f} s): "
                    f"recorded {recorded!r}, now {now!r}"
                )
    return list(lines.values())


def _compared(tick: RecordedTick, answer: TickOut | TickError) -> list[tuple[str, Any, Any]]:
    if isinstance(answer, TickError) or tick.error:
        return [("error", tick.error, str(answer) if isinstance(answer, TickError) else None)]
    heard = np.frombuffer(answer.pcm, np.int16)
    unequal = np.flatnonzero(np.abs(heard.astype(int) - tick.heard) > ROUNDING)
    sound = (f"sample {unequal[0]} is {tick.heard[unequal[0]]}", f"{heard[unequal[0]]}") if len(unequal) else ("", "")
    events = [event.to_json() for event in answer.events]
    return [("text", tick.text, answer.text), ("events", tick.events, events), ("sound", *sound)]
