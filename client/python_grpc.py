"""A conversation with Triton over gRPC: `python client/python_grpc.py IN.wav OUT.wav [HOST:PORT]`.

IN.wav is 16-bit mono 16 kHz; OUT.wav becomes 16-bit mono 24 kHz. Needs only `tritonclient[grpc]`.
"""

from __future__ import annotations

import queue
import random
import sys
import wave
from typing import Any

import numpy as np
import tritonclient.grpc as triton

URL = "127.0.0.1:8001"
TICK_SAMPLES = 5120  # 320 ms at 16 kHz
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


def main() -> None:
    """Read IN.wav, hold the conversation, write OUT.wav, print the text."""
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    with wave.open(sys.argv[1], "rb") as wav:
        if (wav.getframerate(), wav.getnchannels(), wav.getsampwidth()) != (16000, 1, 2):
            sys.exit(f"{sys.argv[1]}: expected 16-bit mono 16 kHz, got {wav.getparams()}")
        samples = np.frombuffer(wav.readframes(wav.getnframes()), np.int16)
    sound, text = converse(sys.argv[3] if len(sys.argv) > 3 else URL, samples)
    with wave.open(sys.argv[2], "wb") as output:
        output.setparams((1, 2, 24000, 0, "NONE", ""))
        output.writeframes(sound.tobytes())
    print(text)


if __name__ == "__main__":
    main()
