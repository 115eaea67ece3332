"""Conversion of an audio file to the format of the microphone."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import soundfile
import soxr

from config.settings import INPUT_HZ

MIN_RATE, MAX_RATE = 1000, 768_000  # samples per second
MAX_PEAK = 8.0  # limit of float samples: clipped recordings are below, integers as floats far above
CANCELLED = 0.1  # level of the channels' mean, relative to the loudest channel, below which the mean is not used
WAV_TYPES = {b"RIFF": "<", b"RF64": "<", b"RIFX": ">"}  # container to byte order
CHUNK_HEADER = 8
CONVERT = "convert it, for example: ffmpeg -i FILE -ac 1 -ar 16000 -c:a pcm_s16le OUT.wav"


class SoundError(ValueError):
    """A file cannot be read as audio; the message contains its name and the reason."""


def read_sound(path: Path) -> np.ndarray:
    """Read a file of any rate and number of channels as float32 samples at 16 kHz, mono; raise `SoundError`."""
    try:
        content = path.read_bytes()
        if not content:
            raise SoundError(f"{path} is empty")
        samples, rate = soundfile.read(io.BytesIO(with_data_size(content)), dtype="float32", always_2d=True)
    except (OSError, soundfile.SoundFileError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, SoundError):
            raise
        raise SoundError(f"{path} cannot be read as sound: {_reason(error)}; {CONVERT}") from error
    if not samples.size:
        raise SoundError(f"{path} has no samples")
    if wrong := int(np.count_nonzero(~np.isfinite(samples))):
        raise SoundError(f"{path} has {wrong} samples that are NaN or infinite: expected numbers from -1 to 1")
    peak = float(np.abs(samples).max())
    if peak > MAX_PEAK:
        raise SoundError(
            f"{path} has float samples of up to {peak:.6g}: expected -1 to 1; divide them by the range of their "
            "integers, such as 32768, or save them as 16-bit integers"
        )
    if not MIN_RATE <= rate <= MAX_RATE:
        raise SoundError(f"{path} has a rate of {rate} Hz: expected {MIN_RATE} to {MAX_RATE}")
    mono = mix(samples)
    converted = mono if rate == INPUT_HZ else soxr.resample(mono, rate, INPUT_HZ)
    if not converted.size:
        raise SoundError(f"{path} is too short: {len(samples)} samples at {rate} Hz")
    return np.asarray(converted, np.float32)


def mix(samples: np.ndarray) -> np.ndarray:
    """Return the mean of the channels [samples, channels], or the loudest channel if they cancel each other out."""
    mono = samples.mean(axis=1)
    levels = np.sqrt(np.mean(np.square(samples, dtype=np.float64), axis=0))
    loudest = int(levels.argmax())
    is_cancelled = np.sqrt(np.mean(np.square(mono, dtype=np.float64))) < CANCELLED * levels[loudest]
    return np.asarray(samples[:, loudest] if is_cancelled else mono, np.float32)


def with_data_size(content: bytes) -> bytes:
    """Return a WAV whose data size was unknown when its header was written with the size of the samples that follow.

    Programs that write to a pipe leave 0 or the largest number in the size fields. Other files are returned unchanged.
    """
    order = WAV_TYPES.get(content[:4])
    if order is None or content[8:12] != b"WAVE":
        return content
    at = 12
    while at + CHUNK_HEADER <= len(content):
        (size,) = struct.unpack_from(f"{order}I", content, at + 4)
        rest = len(content) - at - CHUNK_HEADER
        if content[at : at + 4] == b"data":
            is_streamed = size > rest or (size == 0 and rest > 0 and not _is_chunk(content, at + CHUNK_HEADER, order))
            return _with_size(content, at, rest, order) if is_streamed else content
        at += CHUNK_HEADER + size + size % 2
    return content


def _with_size(content: bytes, at: int, rest: int, order: str) -> bytes:
    """Return a WAV with `rest` bytes in the data chunk at the offset `at`."""
    fixed = bytearray(content)
    fixed[:4] = b"RIFX" if order == ">" else b"RIFF"
    struct.pack_into(f"{order}I", fixed, 4, len(content) - CHUNK_HEADER)
    struct.pack_into(f"{order}I", fixed, at + 4, rest)
    return bytes(fixed)


def _is_chunk(content: bytes, at: int, order: str) -> bool:
    """Return whether whole chunks follow from the offset `at` to the end: the data chunk before them is empty."""
    while at + CHUNK_HEADER <= len(content) and content[at : at + 4].isalnum():
        at += CHUNK_HEADER + struct.unpack_from(f"{order}I", content, at + 4)[0]
        at += at % 2
    return at in (len(content), len(content) + 1)


def _reason(error: Exception) -> str:
    return str(getattr(error, "error_string", "") or getattr(error, "strerror", "") or error).strip(" .")


def to_pcm16(samples: np.ndarray) -> np.ndarray:
    """Convert samples between -1 and 1 to int16."""
    return np.asarray(np.clip(np.round(samples * 32768.0), -32768, 32767), np.int16)
