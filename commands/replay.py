"""./sca replay: a recorded conversation through the server again, and the differences of the answer."""

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
"""Tolerance of audio, in steps of PCM16: sums round differently if a tick shares code2wav's batch with another
conversation's tick. The bridge's health probe is such a conversation."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("recording", type=Path, metavar="RECORDING.wav", help="with its .jsonl in the same folder")


def run(arguments: argparse.Namespace) -> int:
    """Replay the recording, and print the first tick of each kind of difference; return 1 if there is a difference."""
    settings = load_settings()
    try:
        ticks = read_recording(arguments.recording)
        if len(ticks[0].user) != settings.audio.input_samples:
            raise UserError(
                f"{arguments.recording}: expected ticks of {settings.audio.input_samples} samples (audio.tick_ms), "
                f"got {len(ticks[0].user)}"
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
    """Return the answers to the ticks of a recording; raise `TickError` if Triton cannot be reached."""
    free = asyncio.Semaphore(settings.bridge.ticks_in_flight)

    async def requests() -> AsyncIterator[TickIn]:
        for number, tick in enumerate(ticks):
            await free.acquire()
            is_last = number == len(ticks) - 1
            pcm, tick_ms = tick.user.tobytes(), settings.audio.tick_ms
            yield TickIn.from_parameters(pcm, tick.parameters, tick_ms, start=number == 0, end=is_last)

    link = TritonLink(settings)
    answers = []
    try:
        async for answer in link.converse(new_sequence_id(), requests()):
            free.release()
            answers.append(answer)
    finally:
        await link.close()
    return answers


def differences(ticks: Sequence[RecordedTick], answers: Sequence[TickOut | TickError], tick_ms: int) -> list[str]:
    """Return a line each for the first tick whose error, text, events or audio differ; none if all are the same.

    Audio differs if a sample does by more than `ROUNDING`.
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
    unequal = np.flatnonzero(np.abs(heard.astype(int) - tick.assistant) > ROUNDING)
    sound = (
        (f"sample {unequal[0]} is {tick.assistant[unequal[0]]}", f"{heard[unequal[0]]}") if len(unequal) else ("", "")
    )
    events = [event.to_json() for event in answer.events]
    return [("text", tick.text, answer.text), ("events", tick.events, events), ("sound", *sound)]
