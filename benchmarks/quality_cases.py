"""Recordings of users in the folder layout of Full-Duplex-Bench: read from a folder, or made of flite's voices.

The layout is the one of github.com/DanielLin94144/Full-Duplex-Bench: a folder for each recording with `input.wav` and,
depending on its task, `pause.json`, `turn_taking.json`, `interrupt.json` (1.0), or `metadata.json` and
`clean_input.wav` (1.5).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from client.sound import SoundError, read_sound, to_pcm16
from config.settings import INPUT_HZ
from training.judges.flite import HELD_OUT_VOICES, synthesize

PAUSE, TURN, INTERRUPTION, OTHER = "pause_handling", "smooth_turn_taking", "user_interruption", "other"
TASKS = {"pause.json": PAUSE, "turn_taking.json": TURN, "interrupt.json": INTERRUPTION, "metadata.json": INTERRUPTION}
CLEAN = "clean_"
INPUTS = ("input.wav", f"{CLEAN}input.wav")
SPEECH_LEVEL = 300  # samples above it are speech
LEAD_S, ANSWER_S, WAIT_S = 0.4, 6.0, 2.4  # silence before the speech, for an answer, before an interruption
PAUSES = (
    ("I would like a large", "dark roast latte please", 0.3),
    ("Can I get a small mocha", "with almond milk", 0.4),
    ("Give me a medium americano", "with two shots", 0.6),
    ("I want a large", "cappuccino with soy milk", 0.9),
)
TURNS = (
    "Can I get a large dark roast latte with soy milk?",
    "What do you have?",
    "I want a small mocha",
    "Hello, who are you?",
)
INTERRUPTIONS = (
    ("Can I get a large dark roast latte with soy milk?", "make it small"),
    ("I'd like a small mocha", "actually an espresso"),
    ("Give me a medium americano", "make it large"),
    ("Can I have a small mocha?", "with almond milk"),
)


class QualityError(RuntimeError):
    """A folder without readable recordings."""


@dataclass(frozen=True)
class Case:
    """The user's side of a conversation."""

    file: Path
    task: str
    pcm: np.ndarray  # int16 at 16 kHz
    begin_s: float  # begin of the pause, of the gap after the turn, or of the interruption
    end_s: float

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return len(self.pcm) / INPUT_HZ

    @property
    def is_interruption(self) -> bool:
        """True if the user interrupts an answer."""
        return self.task == INTERRUPTION

    def output(self, suffix: str) -> Path:
        """Return the path of the answer's file: `output.wav` next to `input.wav`."""
        return self.file.with_name(self.file.stem.replace("input", "output") + suffix)


def read_cases(root: Path) -> list[Case]:
    """Read every `input.wav` and `clean_input.wav` below a folder, in order. Raises `QualityError`."""
    cases = [_read(file) for name in INPUTS for file in sorted(root.rglob(name))]
    if not cases:
        raise QualityError(f"expected FOLDER/ID/input.wav, got {root} without an input.wav")
    return cases


def _read(file: Path) -> Case:
    folder = file.parent
    name = next((name for name in TASKS if (folder / name).is_file()), None)
    try:
        pcm = to_pcm16(read_sound(file))
        begin_s = end_s = len(pcm) / INPUT_HZ
        if name:
            marks = json.loads((folder / name).read_text(encoding="utf-8"))
            begin_s, end_s = map(float, marks["timestamps"] if name == "metadata.json" else marks[0]["timestamp"])
    except (SoundError, OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise QualityError(f"{file} and its {name or 'marks'} cannot be read: {error!r}") from error
    is_clean = file.name.startswith(CLEAN)  # reference of 1.5 without an interruption
    return Case(file, OTHER if is_clean or not name else TASKS[name], pcm, begin_s, end_s)


def make_cases(root: Path) -> None:
    """Write recordings with pauses of 0.3 to 0.9 s, of turns, and of interruptions of an answer."""
    for task, made in ((PAUSE, _pauses()), (TURN, _turns()), (INTERRUPTION, _interruptions())):
        for number, (audio, file, mark) in enumerate(made, 1):
            folder = root / task / str(number)
            folder.mkdir(parents=True, exist_ok=True)
            soundfile.write(folder / "input.wav", audio, INPUT_HZ, subtype="PCM_16")
            (folder / file).write_text(json.dumps([mark], indent=1), encoding="utf-8")


def _silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * INPUT_HZ), np.int16)


def _speech(text: str, voice: str) -> np.ndarray:
    """Return a sentence without the silence around it."""
    audio = synthesize(text, voice)
    loud = np.flatnonzero(np.abs(audio) > SPEECH_LEVEL)
    return audio[loud[0] : loud[-1] + 1]


Made = Iterator[tuple[np.ndarray, str, dict[str, object]]]  # audio, file name of the marks, marks


def _pauses() -> Made:
    for voice in HELD_OUT_VOICES:
        for first, second, pause_s in PAUSES:
            one, two = _speech(first, voice), _speech(second, voice)
            begin_s = LEAD_S + len(one) / INPUT_HZ
            audio = np.concatenate([_silence(LEAD_S), one, _silence(pause_s), two])  # no time for an answer follows
            yield audio, "pause.json", {"text": "[PAUSE]", "timestamp": [begin_s, begin_s + pause_s]}


def _turns() -> Made:
    for voice in HELD_OUT_VOICES:
        for text in TURNS:
            speech = _speech(text, voice)
            end_s = LEAD_S + len(speech) / INPUT_HZ
            audio = np.concatenate([_silence(LEAD_S), speech, _silence(ANSWER_S)])
            yield audio, "turn_taking.json", {"text": "[TURN-TAKING]", "timestamp": [end_s, end_s + WAIT_S]}


def _interruptions() -> Made:
    for voice in HELD_OUT_VOICES:
        for context, change in INTERRUPTIONS:
            one, two = _speech(context, voice), _speech(change, voice)
            begin_s = LEAD_S + len(one) / INPUT_HZ + WAIT_S
            audio = np.concatenate([_silence(LEAD_S), one, _silence(WAIT_S), two, _silence(ANSWER_S)])
            timestamp = [begin_s, begin_s + len(two) / INPUT_HZ]
            yield audio, "interrupt.json", {"context": context, "interrupt": change, "timestamp": timestamp}
