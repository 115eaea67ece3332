"""A stand-in for Triton and the engine, which answers every tick at once: what is left is the bridge's own share.

`python -m benchmarks.stand_in PORT`. Its answers are one long speech of noise, in one turn. Its text tells how many
frames of the user's sound have come; a count of ticks does not, since the bridge fills up those of a late microphone.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc import service_pb2_grpc as service
from tritonclient.utils import serialize_byte_tensor

from benchmarks.paced import LOUDNESS
from config import Settings
from config.settings import INPUT_HZ

SLOTS = 1000
FRAME_MS = 20  # of a microphone
FRAME = INPUT_HZ * FRAME_MS // 1000
SPEAKS = [  # what the engine says at the beginning of a conversation that is one answer
    {"type": "committed", "turn": 1, "audio_start_ms": 0},
    {"type": "answer_started", "turn": 1},
]


class StandIn(service.GRPCInferenceServiceServicer):
    """As much of Triton's gRPC service as the bridge uses."""

    def __init__(self, settings: Settings):
        random = np.random.RandomState(0)
        samples = random.randint(-LOUDNESS, LOUDNESS, settings.audio.output_samples).astype(np.int16)
        self._sound = samples.tobytes()
        self._config = {"settings": json.dumps({"engine": {"slots": SLOTS}}), "voices": json.dumps(["ethan"])}

    async def ModelReady(self, request: Any, context: Any) -> messages.ModelReadyResponse:  # noqa: N802
        """Always."""
        return messages.ModelReadyResponse(ready=True)

    async def ModelConfig(self, request: Any, context: Any) -> messages.ModelConfigResponse:  # noqa: N802
        """The parameters that the bridge reads."""
        answer = messages.ModelConfigResponse()
        for name, value in self._config.items():
            answer.config.parameters[name].string_value = value
        return answer

    async def ModelInfer(self, request: Any, context: Any) -> messages.ModelInferResponse:  # noqa: N802
        """The END of a conversation that was cut off."""
        return self._answer([])

    async def ModelStreamInfer(  # noqa: N802
        self, requests: AsyncIterator[messages.ModelInferRequest], context: Any
    ) -> AsyncIterator[messages.ModelStreamInferResponse]:
        """A tick's answer for each request."""
        heard: dict[int, int] = {}  # samples of sound in a conversation so far
        async for request in requests:
            number = request.parameters["sequence_id"].int64_param
            events = SPEAKS if request.parameters["sequence_start"].bool_param else []
            sound = np.flatnonzero(np.frombuffer(request.raw_input_contents[0], np.int16))
            heard[number] = heard.get(number, 0) + (int(sound[-1]) + 1 if sound.size else 0)
            told = {"type": "text", "turn": 1, "text": f"{-(-heard[number] // FRAME)} "}  # frames, with one that began
            yield messages.ModelStreamInferResponse(infer_response=self._answer([*events, told]))

    def _answer(self, events: list[dict]) -> messages.ModelInferResponse:
        answer = messages.ModelInferResponse(model_name="duplex")
        for name, kind, shape, data in (
            ("AUDIO_OUT", "INT16", [1, len(self._sound) // 2], self._sound),
            ("TEXT", "BYTES", [1, 1], _bytes("")),
            ("EVENTS", "BYTES", [1, 1], _bytes(json.dumps(events))),
        ):
            answer.outputs.add(name=name, datatype=kind, shape=shape)
            answer.raw_output_contents.append(data)
        return answer


def _bytes(text: str) -> bytes:
    """One element of Triton's type BYTES."""
    return bytes(serialize_byte_tensor(np.array([text], object)).item())


async def serve(port: int) -> None:
    """Until it is killed."""
    server = grpc.aio.server()
    service.add_GRPCInferenceServiceServicer_to_server(StandIn(Settings.load()), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
