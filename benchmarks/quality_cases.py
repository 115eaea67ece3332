"""Recordings of users in the folders of Full-Duplex-Bench: read from anywhere, or made here of flite's voices.

The layout is that benchmark's (github.com/DanielLin94144/Full-Duplex-Bench): a folder for each recording with
`input.wav` and, by its task, `pause.json`, `turn_taking.json`, `interrupt.json` (1.0), or `metadata.json` and
`clean_input.wav` (1.5).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from benchmarks.manners import said_by_flite
from client.sound import SoundError, read_sound, to_pcm16
from config.settings import INPUT_HZ

PAUSE, TURN, INTERRUPTION, OTHER = "pause_handling", "smooth_turn_taking", "user_interruption", "other"
MARKS = {"pause.json": PAUSE, "turn_taking.json": TURN, "interrupt.json": INTERRUPTION, "metadata.json": INTERRUPTION}
CLEAN = "clean_"
INPUTS = ("input.wav", f"{CLEAN}input.wav")
SPEAKERS = ("rms", "slt")
LEAD_S, ANSWER_S, WAIT_S = 0.4, 6.0, 2.4
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
    """The folder does not hold what it should."""


@dataclass(frozen=True)
class Case:
    """A user's side of a conversation."""

    file: Path
    task: str
    pcm: np.ndarray  # int16 at 16 kHz
    begin_s: float  # of the pause, of the gap after the turn, of the interruption
    end_s: float

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.pcm) / INPUT_HZ

    def output(self, suffix: str) -> Path:
        """The file beside it that an answer goes to: `output.wav` beside `input.wav`."""
        return self.file.with_name(self.file.stem.replace("input", "output") + suffix)


def read_cases(root: Path) -> list[Case]:
    """Every `input.wav` and `clean_input.wav` below a folder, in order. Raises `QualityError`."""
    found = [_read(file) for name in INPUTS for file in sorted(root.rglob(name))]
    if not found:
        raise QualityError(f"{root} has no folder with an input.wav, expected FOLDER/ID/input.wav")
    return found


def _read(file: Path) -> Case:
    folder = file.parent
    name = next((name for name in MARKS if (folder / name).is_file()), None)
    try:
        pcm = to_pcm16(read_sound(file))
        begin_s = end_s = len(pcm) / INPUT_HZ
        if name:
            mark = json.loads((folder / name).read_text(encoding="utf-8"))
            begin_s, end_s = map(float, mark["timestamps"] if name == "metadata.json" else mark[0]["timestamp"])
    except (SoundError, OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise QualityError(f"{file} and its {name or 'marks'} cannot be read: {error!r}") from error
    is_clean = file.name.startswith(CLEAN)  # 1.5's reference, in which nobody interrupts
    return Case(file, OTHER if is_clean or not name else MARKS[name], pcm, begin_s, end_s)


def make_cases(root: Path) -> None:
    """Pauses of 0.3 to 0.9 s, turns, and interruptions that come while an answer is given."""
    for task, made in ((PAUSE, _pauses()), (TURN, _turns()), (INTERRUPTION, _interruptions())):
        for number, (sound, file, mark) in enumerate(made, 1):
            folder = root / task / str(number)
            folder.mkdir(parents=True, exist_ok=True)
            soundfile.write(folder / "input.wav", sound, INPUT_HZ, subtype="PCM_16")
            (folder / file).write_text(json.dumps([mark], indent=1), encoding="utf-8")


def _silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * INPUT_HZ), np.int16)


def _said(words: str, speaker: str) -> np.ndarray:
    """A sentence without the silence around it."""
    sound = said_by_flite(words, speaker)
    loud = np.flatnonzero(np.abs(sound) > 300)
    return sound[loud[0] : loud[-1] + 1]


Made = Iterator[tuple[np.ndarray, str, dict[str, object]]]


def _pauses() -> Made:
    for speaker in SPEAKERS:
        for first, second, pause_s in PAUSES:
            one, two = _said(first, speaker), _said(second, speaker)
            begin_s = LEAD_S + len(one) / INPUT_HZ
            sound = np.concatenate([_silence(LEAD_S), one, _silence(pause_s), two])  # what follows is another question
            yield sound, "pause.json", {"text": "[PAUSE]", "timestamp": [begin_s, begin_s + pause_s]}


def _turns() -> Made:
    for speaker in SPEAKERS:
        for words in TURNS:
            said = _said(words, speaker)
            end_s = LEAD_S + len(said) / INPUT_HZ
            sound = np.concatenate([_silence(LEAD_S), said, _silence(ANSWER_S)])
            yield sound, "turn_taking.json", {"text": "[TURN-TAKING]", "timestamp": [end_s, end_s + WAIT_S]}


def _interruptions() -> Made:
    for speaker in SPEAKERS:
        for context, change in INTERRUPTIONS:
            one, two = _said(context, speaker), _said(change, speaker)
            begin_s = LEAD_S + len(one) / INPUT_HZ + WAIT_S
            sound = np.concatenate([_silence(LEAD_S), one, _silence(WAIT_S), two, _silence(ANSWER_S)])
            timestamp = [begin_s, begin_s + len(two) / INPUT_HZ]
            yield sound, "interrupt.json", {"context": context, "interrupt": change, "timestamp": timestamp}
