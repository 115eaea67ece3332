"""A stub of Triton and the engine that responds to every tick immediately: what remains is the bridge's share.

`python -m benchmarks.triton_stub PORT`. Its responses are one long answer of noise, in one turn. Their text is the
number of 20 ms frames of the user's audio that have been received; a count of ticks would be wrong, because the bridge
fills the ticks of a late microphone with silence.
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
from benchmarks.paced_client import FRAME
from config import Settings
from contract.events import AnswerStarted, Committed, Event, Text

SLOTS = 1000
# Events of the first tick of a conversation that is one answer.
FIRST_EVENTS: list[Event] = [Committed(at_ms=0, turn=1, audio_start_ms=0), AnswerStarted(at_ms=0, turn=1)]


class TritonStub(service.GRPCInferenceServiceServicer):
    """The part of Triton's gRPC service that the bridge uses."""

    def __init__(self, settings: Settings):
        random = np.random.RandomState(0)
        samples = random.randint(-LOUDNESS, LOUDNESS, settings.audio.output_samples).astype(np.int16)
        self._audio = samples.tobytes()
        self._config = {"settings": json.dumps({"engine": {"slots": SLOTS}}), "voices": json.dumps(["ethan"])}

    async def ModelReady(self, request: Any, context: Any) -> messages.ModelReadyResponse:  # noqa: N802
        """Report that the model is ready."""
        return messages.ModelReadyResponse(ready=True)

    async def ModelConfig(self, request: Any, context: Any) -> messages.ModelConfigResponse:  # noqa: N802
        """Return the parameters that the bridge reads."""
        response = messages.ModelConfigResponse()
        for name, value in self._config.items():
            response.config.parameters[name].string_value = value
        return response

    async def ModelInfer(self, request: Any, context: Any) -> messages.ModelInferResponse:  # noqa: N802
        """Respond to the END of a conversation that was cut off."""
        return self._response([])

    async def ModelStreamInfer(  # noqa: N802
        self, requests: AsyncIterator[messages.ModelInferRequest], context: Any
    ) -> AsyncIterator[messages.ModelStreamInferResponse]:
        """Yield a response for each tick."""
        received: dict[int, int] = {}  # samples of audio by conversation
        async for request in requests:
            number = request.parameters["sequence_id"].int64_param
            events = FIRST_EVENTS if request.parameters["sequence_start"].bool_param else []
            audio = np.flatnonzero(np.frombuffer(request.raw_input_contents[0], np.int16))
            received[number] = received.get(number, 0) + (int(audio[-1]) + 1 if audio.size else 0)
            frames = -(-received[number] // FRAME)  # an incomplete frame counts
            text = Text(at_ms=0, text=f"{frames} ")
            yield messages.ModelStreamInferResponse(infer_response=self._response([*events, text]))

    def _response(self, events: list[Event]) -> messages.ModelInferResponse:
        response = messages.ModelInferResponse(model_name="duplex")
        for name, kind, shape, data in (
            ("AUDIO_OUT", "INT16", [1, len(self._audio) // 2], self._audio),
            ("TEXT", "BYTES", [1, 1], _bytes("")),
            ("EVENTS", "BYTES", [1, 1], _bytes(json.dumps([event.to_json() for event in events]))),
        ):
            response.outputs.add(name=name, datatype=kind, shape=shape)
            response.raw_output_contents.append(data)
        return response


def _bytes(text: str) -> bytes:
    """Serialize one element of Triton's type BYTES."""
    return bytes(serialize_byte_tensor(np.array([text], object)).item())


async def serve(port: int) -> None:
    """Serve until the process is killed."""
    server = grpc.aio.server()
    service.add_GRPCInferenceServiceServicer_to_server(TritonStub(Settings.load()), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
