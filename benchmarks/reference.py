"""Conversations with known answers: two turns, one spoken and one typed, greedy decoding.

The expected answers are those of transformers' `generate()` if the server computes in float32, otherwise the server's
own first answers, given while it held one conversation.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from config import Settings
from config.settings import CODEC_FRAME_MS
from engine.checkpoint import Checkpoint
from engine.options import parse_options
from export.code2wav import DELAY_SAMPLES
from training.judges.barge_in import ORDERS
from training.judges.dialogue import Answer, dialogue
from training.judges.flite import HELD_OUT_VOICES, synthesize

TICK = 5120  # samples
PADDING = 1000  # samples of silence with which the bridge completes the spoken turn's last tick
MAX_TOKENS, MAX_FRAMES = 60, 100  # limits of an answer
LIMITS = {"answer_tokens": MAX_TOKENS, "answer_frames": MAX_FRAMES}
MAX_STEPS = 2  # difference in steps of PCM16: the server and transformers are each within one step of the exact sample


@dataclass(frozen=True)
class Script:
    """The user's two turns."""

    speech: np.ndarray  # int16 at 16 kHz
    message: str


def scripts(count: int) -> list[Script]:
    """Return `count` scripts: an order by one of flite's voices, and a typed change."""
    made = []
    for number in range(count):
        order, change, _ = ORDERS[number % len(ORDERS)]
        speech = synthesize(order, HELD_OUT_VOICES[number % len(HELD_OUT_VOICES)])
        whole_ticks = -(-(len(speech) + PADDING) // TICK) * TICK
        made.append(Script(np.pad(speech, (0, whole_ticks - PADDING - len(speech))), change))
    return made


async def request_answers(settings: Settings, script: Script) -> list[Answer]:
    """Return the server's two answers. Raises `DialogueError` and the exceptions of a WebSocket."""
    options = {"detection": "manual", "temperature": 0, "text_temperature": 0, **LIMITS}
    async with dialogue(settings, "&".join(f"{name}={value}" for name, value in options.items())) as talk:
        await talk.send_audio(script.speech)
        await talk.send_control("commit")
        first = await talk.wait_for_answer(0)
        since = len(talk.events)
        await talk.send_control("message", text=script.message)
        return [first, await talk.wait_for_answer(since)]


def generate_answers(checkpoint: Checkpoint, settings: Settings, script: Script) -> list[Answer]:
    """Return the two answers of transformers' `generate()`, from the raw samples on, in the server's form."""
    from tests.turn_oracle import TurnOracle

    voices = list(checkpoint.model.config.talker_config.speaker_id)
    options = parse_options({}, settings, voices)
    oracle = TurnOracle(checkpoint, options.voice, options.system_prompt)
    answers = []
    for speech, message in ((np.pad(script.speech, (0, PADDING)), ""), (None, script.message)):
        oracle.add_user_turn(speech, message)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # transformers warns that the repetition penalty excludes the prompt
            answer = oracle.answer(MAX_TOKENS, MAX_FRAMES, options.sampling.repetition_penalty)
        oracle.add_answer([token for token in answer.tokens if token != checkpoint.tokenizer.eos_token_id])
        text = checkpoint.tokenizer.decode(answer.tokens, skip_special_tokens=True)
        waveform = (answer.waveform * 32767).round().numpy()
        spoken_s = answer.codes.shape[1] * CODEC_FRAME_MS / 1000
        answers.append(Answer(text, np.pad(waveform, (DELAY_SAMPLES, 0)), spoken_s))
    return answers


def difference(answers: Sequence[Answer], expected: Sequence[Answer]) -> str | None:
    """Describe the first difference; None if the answers are equal."""
    for number, (one, other) in enumerate(zip(answers, expected, strict=True), 1):
        if one.text != other.text:
            return f"answer {number}: expected {other.text!r}, got {one.text!r}"
        if one.spoken_s is None or other.spoken_s is None or abs(one.spoken_s - other.spoken_s) > 0.001:
            return f"answer {number}: expected {other.spoken_s} s, got {one.spoken_s} s"
        audio = np.trim_zeros(other.audio, "b")
        if len(one.audio) < len(audio):
            return f"answer {number}: expected {len(audio)} samples, got {len(one.audio)}"
        steps = np.abs(one.audio[: len(audio)].astype(float) - audio).max(initial=0)
        if one.audio[len(audio) :].any():
            return f"answer {number}: expected silence after {len(audio)} samples, got audio"
        if steps > MAX_STEPS:
            return f"answer {number}: expected samples within {MAX_STEPS} steps of PCM16, got {steps:.0f} steps"
    return None
