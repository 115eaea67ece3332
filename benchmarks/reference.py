"""Conversations whose answers are known beforehand: two turns, one spoken and one typed, greedy.

They are known from transformers' `generate()`, where the server computes in float32; else from the server's own first
answers, given to one conversation alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.dialogue import Answer, dialogue
from benchmarks.manners import ORDERS, said_by_flite
from config import Settings
from engine.checkpoint import Checkpoint
from engine.options import parse_options
from export.code2wav import DELAY_SAMPLES

TICK = 5120  # samples
OPEN = 1000  # samples by which the spoken turn ends before its last tick does: the bridge adds silence
TOKENS, FRAMES = 60, 100  # of an answer at most
LIMITS = {"answer_tokens": TOKENS, "answer_frames": FRAMES}
STEPS = 2  # of PCM16: the server's sound and transformers' are each within one of the exact one
SPEAKERS = ("rms", "slt")


@dataclass(frozen=True)
class Script:
    """What one user says in both turns."""

    spoken: np.ndarray  # int16 at 16 kHz
    typed: str


def scripts(count: int) -> list[Script]:
    """Orders by flite's voices, and a change that is typed."""
    made = []
    for number in range(count):
        order, change, _ = ORDERS[number % len(ORDERS)]
        sound = said_by_flite(order, SPEAKERS[number % len(SPEAKERS)])
        whole = -(-(len(sound) + OPEN) // TICK) * TICK
        made.append(Script(np.pad(sound, (0, whole - OPEN - len(sound))), change))
    return made


async def ask(settings: Settings, script: Script) -> list[Answer]:
    """Both answers of the server. Raises `DialogueError` and what a WebSocket raises."""
    options = {"detection": "manual", "temperature": 0, "text_temperature": 0, **LIMITS}
    async with dialogue(settings, "&".join(f"{name}={value}" for name, value in options.items())) as talk:
        await talk.say(script.spoken)
        await talk.ask("commit")
        first = await talk.answer(0)
        place = len(talk.events)
        await talk.ask("message", text=script.typed)
        return [first, await talk.answer(place)]


def by_transformers(checkpoint: Checkpoint, settings: Settings, script: Script) -> list[Answer]:
    """Both answers as `generate()` gives them, from the raw samples on, in the server's form."""
    from tests.turn_oracle import TurnOracle

    voices = list(checkpoint.model.config.talker_config.speaker_id)
    options = parse_options({}, settings, voices)
    oracle = TurnOracle(checkpoint, options.voice, options.system_prompt)
    answers = []
    for sound, typed in ((np.pad(script.spoken, (0, OPEN)), ""), (None, script.typed)):
        oracle.hear(sound, typed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # transformers': of a penalty that leaves the prompt out
            said = oracle.answer(TOKENS, FRAMES, options.sampling.repetition_penalty)
        oracle.say([token for token in said.tokens if token != checkpoint.tokenizer.eos_token_id])
        text = checkpoint.tokenizer.decode(said.tokens, skip_special_tokens=True)
        waveform = (said.waveform * 32767).round().numpy()
        answers.append(Answer(text, np.pad(waveform, (DELAY_SAMPLES, 0)), said.codes.shape[1] * 0.08))
    return answers


def difference(found: Sequence[Answer], expected: Sequence[Answer]) -> str | None:
    """What differs first, in words; None where all is as it should be."""
    for place, (one, other) in enumerate(zip(found, expected, strict=True), 1):
        if one.text != other.text:
            return f"answer {place} is {one.text!r}, expected {other.text!r}"
        if one.spoken_s is None or other.spoken_s is None or abs(one.spoken_s - other.spoken_s) > 0.001:
            return f"answer {place} takes {one.spoken_s} s, expected {other.spoken_s}"
        wanted = np.trim_zeros(other.sound, "b")
        if len(one.sound) < len(wanted):
            return f"answer {place} has {len(one.sound)} samples, expected {len(wanted)}"
        steps = np.abs(one.sound[: len(wanted)].astype(float) - wanted).max(initial=0)
        if one.sound[len(wanted) :].any():
            return f"answer {place} goes on after its {len(wanted)} samples"
        if steps > STEPS:
            return f"answer {place} sounds otherwise by {steps:.0f} steps of PCM16, expected at most {STEPS}"
    return None
