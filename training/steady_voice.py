"""The barista's voice: Kokoro with less variation, so that a small talker can learn it.

A neural voice speaks a word differently in every sentence: duration, pitch and, through the norms of its decoder, the
timbre of a frame depend on the whole sentence, and the codes are hard to predict from a text. Here a word has one
duration, a whole number of codec frames, and one pitch and energy contour, the mean of its contours in many sentences.
The decoder's norms have constant statistics, so that a frame depends on its neighbours only.
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

UNIT = 3  # Kokoro's frames in a codec frame: every word begins at the begin of a codec frame
KOKORO_HZ = 600 * UNIT * 1000 // CODEC_FRAME_MS  # assumed rate of its 24 kHz output: 6% slower and lower
DURATIONS = "/encoder/Clip_output_0"  # [1, tokens], in frames of 600 samples
PITCH, ENERGY = "/encoder/F0_proj/Conv_output_0", "/encoder/N_proj/Conv_output_0"  # [1, 1, half frames]
VOICED_HZ, UNVOICED_HZ = 60.0, 9.0  # pitch below the first is unvoiced; Kokoro writes about the second there
STEPS = 2 * UNIT  # steps of a contour in a codec frame
REFERENCES = 12  # sentences that the constant statistics of the decoder's norms are computed from
END = "$"  # marks the last word of a sentence, which has more silence after it
Inputs = dict[str, np.ndarray]


class Natural(NamedTuple):
    """A text with Kokoro's own durations."""

    words: list[str]  # phonemes of each word; the first is the silence before the sentence
    durations: list[np.ndarray]  # durations of each word's phonemes, in Kokoro's frames
    inputs: Inputs


class Sentence(NamedTuple):
    """A text whose words begin at codec frames."""

    words: list[str]
    frames: list[int]  # duration of each word, in codec frames
    inputs: Inputs

    def contours(self, sentence: np.ndarray) -> list[np.ndarray]:
        """Split a sentence's contour [..., STEPS a codec frame] into its words' contours."""
        return np.split(sentence, np.cumsum(self.frames)[:-1] * STEPS, axis=-1)


class SteadyVoice:
    """Speech synthesis with one voice of Kokoro."""

    def __init__(self, styles: Path, voice: str, style: int, texts: Sequence[str]):
        """Set up a voice.

        `style`: length in phonemes of the style vector. `texts`: sentences that words are averaged over.
        """
        self._kokoro = Kokoro(styles)
        self._style = self._kokoro.styles[voice][style]
        self._timing = make_session(onnx.utils.Extractor(kokoro_graph()).extract_model(Kokoro.INPUTS, [DURATIONS]))
        cut = onnx.utils.Extractor(kokoro_graph({DURATIONS: "durations"}))
        self._contour = make_session(cut.extract_model([*Kokoro.INPUTS, "durations"], [PITCH, ENERGY]))
        cut = kokoro_graph({DURATIONS: "durations", PITCH: "pitch", ENERGY: "energy"})

        naturals = [self._natural(text) for text in texts]
        timed = _by_word((each.words, each.durations) for each in naturals)
        self._durations = {word: np.mean(durations, 0) for word, durations in timed.items()}
        sentences = [self._sentence(each) for each in naturals]
        contours = _by_word((each.words, each.contours(self._natural_contour(each))) for each in sentences)
        self._contours = {word: _mean_contour(np.stack(each)) for word, each in contours.items()}
        self._decoder = make_session(self._with_constant_norms(cut, sentences[:REFERENCES]))

    def speak(self, text: str) -> tuple[np.ndarray, list[float]]:
        """Synthesize `text`: float32 at 24 kHz in whole codec frames, and the begin of each word in seconds.

        Words that are spoken as one ("did not") have one begin.
        """
        sentence = self._sentence(self._natural(text))
        natural = sentence.contours(self._natural_contour(sentence))
        contour = [self._contours.get(word, own) for word, own in zip(sentence.words, natural, strict=True)]
        samples = self._run(self._decoder, sentence, np.concatenate(contour, axis=-1))[0].ravel()
        samples = soxr.resample(samples, KOKORO_HZ, OUTPUT_HZ)
        whole = sum(sentence.frames) * CODEC_FRAME_MS * OUTPUT_HZ // 1000
        starts = np.cumsum(sentence.frames)[:-1] * CODEC_FRAME_MS / 1000
        return np.pad(samples, (0, max(0, whole - len(samples))))[:whole], [float(start) for start in starts]

    def _natural(self, text: str) -> Natural:
        phonemes = self._kokoro.phonemes(text)
        words = re.findall(r"\S+ ?", phonemes)
        lengths = [1, *(len(self._kokoro.tokens(word)) - 2 for word in words)]
        lengths[-1] += 1  # the last word includes the token that ends the sentence
        inputs = self._kokoro.inputs(phonemes, self._style)
        durations = np.split(self._timing.run(None, inputs)[0][0], np.cumsum(lengths)[:-1])
        durations[0][:], durations[-1][-2:] = UNIT, 1  # short silence before and after the sentence
        return Natural(["", *words[:-1], words[-1] + END], durations, inputs)

    def _sentence(self, natural: Natural) -> Sentence:
        """Return the text with the mean durations of its words; unknown words keep Kokoro's."""
        own = zip(natural.words, natural.durations, strict=True)
        means = [self._durations.get(word, durations) for word, durations in own]
        frames = [max(math.ceil(len(mean) / UNIT), round(mean.sum() / UNIT)) for mean in means]
        durations = np.concatenate([_stretched(mean, n * UNIT) for mean, n in zip(means, frames, strict=True)])
        return Sentence(natural.words, frames, {**natural.inputs, "durations": durations.astype(np.float32)[None]})

    def _natural_contour(self, sentence: Sentence) -> np.ndarray:
        """Return pitch and energy, [2, STEPS a codec frame]."""
        return np.concatenate(self._contour.run(None, sentence.inputs))[:, 0]

    @staticmethod
    def _run(
        session: InferenceSession, sentence: Sentence, contour: np.ndarray, outputs: Sequence[str] | None = None
    ) -> list[np.ndarray]:
        """Run a graph after the contour, with the inputs that it needs."""
        pitch, energy = contour.astype(np.float32)[:, None, None]
        feed = {**sentence.inputs, "pitch": pitch, "energy": energy}
        results: list[np.ndarray] = session.run(outputs, {each.name: feed[each.name] for each in session.get_inputs()})
        return results

    def _with_constant_norms(self, graph: onnx.ModelProto, sentences: Iterable[Sentence]) -> onnx.ModelProto:
        """Replace the statistics of the decoder's norms by their mean over some sentences."""
        means = [node for node in graph.graph.node if node.op_type == "ReduceMean" and node.name.startswith("/decoder")]
        names = [node.output[0] for node in means]
        probe = onnx.ModelProto()
        probe.CopyFrom(graph)
        unknown = onnx.TensorProto.FLOAT, None
        probe.graph.output.extend(onnx.helper.make_tensor_value_info(name, *unknown) for name in names)
        session = make_session(probe)
        statistics = [self._run(session, each, self._natural_contour(each), names) for each in sentences]
        for node, values in zip(means, zip(*statistics, strict=True), strict=True):
            graph.graph.node.remove(node)
            mean = np.mean(values, 0).astype(np.float32)
            graph.graph.initializer.append(onnx.numpy_helper.from_array(mean, node.output[0]))
        return graph


def _by_word(sentences: Iterable[tuple[list[str], list[np.ndarray]]]) -> dict[str, list[np.ndarray]]:
    """Collect the values of each word over its sentences."""
    found: dict[str, list[np.ndarray]] = defaultdict(list)
    for words, values in sentences:
        for word, value in zip(words, values, strict=True):
            found[word].append(value)
    return found


def _mean_contour(contours: np.ndarray) -> np.ndarray:
    """Return the mean of contours [N, 2, steps]: a step is voiced if half of them are, with their mean pitch."""
    pitch, energy = contours[:, 0], contours[:, 1]
    voiced = pitch > VOICED_HZ
    mean = (pitch * voiced).sum(0) / np.maximum(voiced.sum(0), 1)
    return np.stack([np.where(voiced.mean(0) >= 0.5, mean, UNVOICED_HZ), energy.mean(0)])


def _stretched(durations: np.ndarray, total: int) -> np.ndarray:
    """Scale `durations` to whole numbers with the sum `total`, each at least 1 if `total` allows it."""
    minimum = 1 if total >= len(durations) else 0
    ends = np.rint(np.cumsum(durations) / durations.sum() * (total - minimum * len(durations))).astype(int)
    return np.diff(ends, prepend=0) + minimum
