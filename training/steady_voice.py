"""The barista's voice: Kokoro made so steady that a small talker can learn it.

A neural voice says a word differently in every sentence: its length, its melody and, through the norms of its decoder,
even the timbre of a frame depend on the whole sentence, and codes of such sound can hardly be told from a text. Here a
word has one length, a whole number of codec frames, and one melody, the mean of those that it has in many sentences;
and the decoder's norms have constant statistics, so that a frame depends on its neighbours alone.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import soxr
from onnxruntime import InferenceSession

from config.settings import CODEC_FRAME_MS, OUTPUT_HZ
from training.voices import Kokoro, kokoro_graph, make_session

UNIT = 3  # of Kokoro's frames in one of the codec's: every word begins at the same phase of both
KOKORO_HZ = 600 * UNIT * 1000 // CODEC_FRAME_MS  # what its 24 kHz are taken for: 6% slower, and as much deeper
DURATIONS = "/encoder/Clip_output_0"  # [1, tokens], in frames of 600 samples
PITCH, ENERGY = "/encoder/F0_proj/Conv_output_0", "/encoder/N_proj/Conv_output_0"  # [1, 1, half frames]
VOICED_HZ, UNVOICED_HZ = 60.0, 9.0  # a pitch below the first is no voice; Kokoro writes about the second there
STEPS = 2 * UNIT  # of a melody in a codec frame
REFERENCES = 12  # sentences whose statistics the decoder's norms have
END = "$"  # after the last word, which has more silence than the same elsewhere
Inputs = dict[str, np.ndarray]


class Natural(NamedTuple):
    """A text as Kokoro would time it."""

    words: list[str]  # in its phonemes; the first is the silence before
    durations: list[np.ndarray]  # of each word's phonemes, in its frames
    inputs: Inputs


class Sentence(NamedTuple):
    """A text on the grid."""

    words: list[str]
    frames: list[int]  # of the codec, that each lasts
    inputs: Inputs

    def melodies(self, whole: np.ndarray) -> list[np.ndarray]:
        """Each word's part of a sentence's melody [..., STEPS a codec frame]."""
        return np.split(whole, np.cumsum(self.frames)[:-1] * STEPS, axis=-1)


class SteadyVoice:
    """Speaks with one voice of Kokoro."""

    def __init__(self, styles: Path, voice: str, style: int, texts: Sequence[str]):
        """`style`: phonemes of the sentence whose style it has. `texts`: sentences that words' ways come from."""
        self._kokoro = Kokoro(styles)
        self._style = self._kokoro.styles[voice][style]
        self._pace = make_session(onnx.utils.Extractor(kokoro_graph()).extract_model(Kokoro.INPUTS, [DURATIONS]))
        cut = onnx.utils.Extractor(kokoro_graph({DURATIONS: "durations"}))
        self._melody = make_session(cut.extract_model([*Kokoro.INPUTS, "durations"], [PITCH, ENERGY]))
        cut = kokoro_graph({DURATIONS: "durations", PITCH: "pitch", ENERGY: "energy"})

        naturals = [self._natural(text) for text in texts]
        timed = _by_word((each.words, each.durations) for each in naturals)
        self._durations = {word: np.mean(found, 0) for word, found in timed.items()}
        sentences = [self._sentence(each) for each in naturals]
        sung = [(each.words, each.melodies(self._natural_melody(each))) for each in sentences]
        self._melodies = {word: _mean_melody(np.stack(found)) for word, found in _by_word(sung).items()}
        self._sound = make_session(self._with_constant_norms(cut, sentences[:REFERENCES]))

    def speak(self, text: str) -> tuple[np.ndarray, list[float]]:
        """`text`, float32 at 24 kHz in whole codec frames, and when each of its words begins, in seconds.

        Words that are spoken as one ("did not") have one beginning between them.
        """
        sentence = self._sentence(self._natural(text))
        natural = sentence.melodies(self._natural_melody(sentence))
        melody = [self._melodies.get(word, own) for word, own in zip(sentence.words, natural, strict=True)]
        samples = self._run(self._sound, sentence, np.concatenate(melody, axis=-1))[0].ravel()
        samples = soxr.resample(samples, KOKORO_HZ, OUTPUT_HZ)
        whole = sum(sentence.frames) * CODEC_FRAME_MS * OUTPUT_HZ // 1000
        starts = np.cumsum(sentence.frames)[:-1] * CODEC_FRAME_MS / 1000
        return np.pad(samples, (0, max(0, whole - len(samples))))[:whole], [float(start) for start in starts]

    def _natural(self, text: str) -> Natural:
        phonemes = self._kokoro.phonemes(text)
        words = re.findall(r"\S+ ?", phonemes)
        lengths = [1, *(len(self._kokoro.tokens(word)) - 2 for word in words)]
        lengths[-1] += 1  # the token that ends the sentence goes with its last word, the one that begins it is alone
        inputs = self._kokoro.inputs(phonemes, self._style)
        parts = np.split(self._pace.run(None, inputs)[0][0], np.cumsum(lengths)[:-1])
        parts[0][:], parts[-1][-2:] = UNIT, 1  # little silence before, and after
        return Natural(["", *words[:-1], words[-1] + END], parts, inputs)

    def _sentence(self, natural: Natural) -> Sentence:
        """The text with the lengths that its words always have; one that is not known keeps its own."""
        own = zip(natural.words, natural.durations, strict=True)
        parts = [self._durations.get(word, durations) for word, durations in own]
        frames = [max(math.ceil(len(part) / UNIT), round(part.sum() / UNIT)) for part in parts]
        durations = np.concatenate([_stretched(part, n * UNIT) for part, n in zip(parts, frames, strict=True)])
        return Sentence(natural.words, frames, {**natural.inputs, "durations": durations.astype(np.float32)[None]})

    def _natural_melody(self, sentence: Sentence) -> np.ndarray:
        """Pitch and energy, [2, STEPS a codec frame]."""
        return np.concatenate(self._melody.run(None, sentence.inputs))[:, 0]

    @staticmethod
    def _run(
        session: InferenceSession, sentence: Sentence, melody: np.ndarray, outputs: Sequence[str] | None = None
    ) -> list[np.ndarray]:
        """Runs a graph behind the melody, which may need fewer inputs."""
        pitch, energy = melody.astype(np.float32)[:, None, None]
        feed = {**sentence.inputs, "pitch": pitch, "energy": energy}
        found: list[np.ndarray] = session.run(outputs, {each.name: feed[each.name] for each in session.get_inputs()})
        return found

    def _with_constant_norms(self, graph: onnx.ModelProto, sentences: Iterable[Sentence]) -> onnx.ModelProto:
        """The graph, whose decoder normalises every frame by the mean statistics of some sentences."""
        means = [node for node in graph.graph.node if node.op_type == "ReduceMean" and node.name.startswith("/decoder")]
        names = [node.output[0] for node in means]
        probe = onnx.ModelProto()
        probe.CopyFrom(graph)
        unknown = onnx.TensorProto.FLOAT, None
        probe.graph.output.extend(onnx.helper.make_tensor_value_info(name, *unknown) for name in names)
        session = make_session(probe)
        found = [self._run(session, each, self._natural_melody(each), names) for each in sentences]
        for node, statistics in zip(means, zip(*found, strict=True), strict=True):
            graph.graph.node.remove(node)
            mean = np.mean(statistics, 0).astype(np.float32)
            graph.graph.initializer.append(onnx.numpy_helper.from_array(mean, node.output[0]))
        return graph


def _by_word(sentences: Iterable[tuple[list[str], list[np.ndarray]]]) -> dict[str, list[np.ndarray]]:
    """What each word has in each of its sentences."""
    found: dict[str, list[np.ndarray]] = defaultdict(list)
    for words, parts in sentences:
        for word, part in zip(words, parts, strict=True):
            found[word].append(part)
    return found


def _mean_melody(melodies: np.ndarray) -> np.ndarray:
    """The mean of melodies [N, 2, steps]: voiced where most are, with the mean pitch of those."""
    pitch, energy = melodies[:, 0], melodies[:, 1]
    voiced = pitch > VOICED_HZ
    mean = (pitch * voiced).sum(0) / np.maximum(voiced.sum(0), 1)
    return np.stack([np.where(voiced.mean(0) >= 0.5, mean, UNVOICED_HZ), energy.mean(0)])


def _stretched(durations: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers in the proportions of `durations`, `total` in sum; at least 1 each where `total` allows it."""
    least = 1 if total >= len(durations) else 0
    ends = np.rint(np.cumsum(durations) / durations.sum() * (total - least * len(durations))).astype(int)
    return np.diff(ends, prepend=0) + least
