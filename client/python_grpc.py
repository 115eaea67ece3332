"""A conversation with Triton over gRPC: `python client/python_grpc.py IN.wav OUT.wav [HOST:PORT]`.

IN.wav is 16-bit mono 16 kHz; OUT.wav becomes 16-bit mono 24 kHz. Needs only `tritonclient[grpc]`.
"""

from __future__ import annotations

import queue
import random
import struct
import sys
import wave
from typing import Any

import numpy as np
import tritonclient.grpc as triton

URL = "127.0.0.1:8001"
TICK_SAMPLES = 5120  # 320 ms at 16 kHz
FORMAT = "16-bit PCM, 1 channel(s), 16000 Hz"  # format of IN.wav
NO_PROXY = [("grpc.enable_http_proxy", 0)]  # a proxy does not reach a server on this machine or in its network
OPTIONS: dict[str, str | int | float] = {}  # options of the conversation, for example {"voice": "ethan", "seed": 7}


def converse(url: str, samples: np.ndarray) -> tuple[np.ndarray, str]:
    """Send int16 samples at 16 kHz; return int16 samples at 24 kHz and the text. Raises `InferenceServerException`."""
    ticks = np.pad(samples, (0, -len(samples) % TICK_SAMPLES)).reshape(-1, 1, TICK_SAMPLES)
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    conversation = random.getrandbits(62) + 1
    sound, text = [], ""
    with triton.InferenceServerClient(url, channel_args=NO_PROXY) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for i, tick in enumerate(ticks):
            audio = triton.InferInput("AUDIO_IN", [1, TICK_SAMPLES], "INT16")
            audio.set_data_from_numpy(tick)
            client.async_stream_infer(
                "duplex",
                [audio],
                sequence_id=conversation,
                sequence_start=i == 0,
                sequence_end=i == len(ticks) - 1,
                parameters=(OPTIONS or None) if i == 0 else None,
            )
        for _ in ticks:
            result, error = answers.get()
            if error is not None:
                raise error
            sound.append(result.as_numpy("AUDIO_OUT")[0])
            text += result.as_numpy("TEXT").item().decode()
        client.stop_stream()
    return np.concatenate(sound), text


def read_wav(path: str) -> bytes:
    """Return the samples of a WAV; raise `ValueError` if it is not 16-bit mono 16 kHz.

    Programs that write to a pipe leave 0 or the largest number as the size of the samples, which then reach to the end.
    """
    with open(path, "rb") as file:
        content = file.read()
    if content[:4] not in (b"RIFF", b"RF64") or content[8:12] != b"WAVE":
        raise ValueError("it is empty" if not content else "it is no WAV")
    at, found = 12, "no format"
    while at + 8 <= len(content):
        name, size = struct.unpack_from("<4sI", content, at)
        at += 8
        if name == b"fmt " and at + max(size, 16) <= len(content):
            kind, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", content, at)
            if kind == 0xFFFE and size >= 26:  # WAVE_FORMAT_EXTENSIBLE has the format in its first subformat bytes
                (kind,) = struct.unpack_from("<H", content, at + 24)
            found = f"{bits}-bit {'PCM' if kind == 1 else f'format {kind}'}, {channels} channel(s), {rate} Hz"
        elif name == b"data":
            if found != FORMAT:
                break
            is_streamed = size == 0 and content[at : at + 4] != b"LIST"
            pcm = content[at:] if is_streamed else content[at : at + size]
            if len(pcm) < 2:
                raise ValueError("it has no samples")
            return pcm[: len(pcm) // 2 * 2]
        at += size + size % 2
    else:
        raise ValueError("it has no samples")
    raise ValueError(
        f"expected {FORMAT}, got {found}; convert it: ffmpeg -i FILE -ac 1 -ar 16000 -c:a pcm_s16le IN.wav"
    )


def main() -> None:
    """Read IN.wav, hold the conversation, write OUT.wav, print the text."""
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    try:
        pcm = read_wav(sys.argv[1])
    except (OSError, ValueError) as error:
        sys.exit(f"{sys.argv[1]} cannot be used: {error}")
    sound, text = converse(sys.argv[3] if len(sys.argv) > 3 else URL, np.frombuffer(pcm, "<i2"))
    with wave.open(sys.argv[2], "wb") as output:
        output.setparams((1, 2, 24000, 0, "NONE", ""))
        output.writeframes(sound.tobytes())
    print(text)


if __name__ == "__main__":
    main()
