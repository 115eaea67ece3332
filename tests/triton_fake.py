"""A fake Triton whose engine returns the user's audio, and a bridge before it, in this process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import numpy as np
import uvicorn
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc import service_pb2_grpc as service
from tritonclient.utils import serialize_byte_tensor

from config import Settings
from frontend.app import create_app

OUTPUT_SAMPLES = 7680
READY_S = 60


class FakeTriton(service.GRPCInferenceServiceServicer):
    """The part of Triton's gRPC service that the bridge uses. Each tick's text is the tick's request parameters."""

    def __init__(self, slots: int):
        self._config = {"settings": json.dumps({"engine": {"slots": slots}}), "voices": json.dumps(["ethan"])}
        self.ends = 0  # requests with END

    async def ModelReady(self, request: Any, context: Any) -> messages.ModelReadyResponse:  # noqa: N802
        return messages.ModelReadyResponse(ready=True)

    async def ModelConfig(self, request: Any, context: Any) -> messages.ModelConfigResponse:  # noqa: N802
        answer = messages.ModelConfigResponse()
        for name, value in self._config.items():
            answer.config.parameters[name].string_value = value
        return answer

    async def ModelInfer(self, request: Any, context: Any) -> messages.ModelInferResponse:  # noqa: N802
        return self._answer(request)

    async def ModelStreamInfer(  # noqa: N802
        self, requests: AsyncIterator[messages.ModelInferRequest], context: Any
    ) -> AsyncIterator[messages.ModelStreamInferResponse]:
        async for request in requests:
            yield messages.ModelStreamInferResponse(infer_response=self._answer(request))

    def _answer(self, request: messages.ModelInferRequest) -> messages.ModelInferResponse:
        parameters = {name: _value(each) for name, each in request.parameters.items()}
        self.ends += bool(parameters.get("sequence_end"))
        options = {name: value for name, value in parameters.items() if not name.startswith("sequence")}
        events = [{"type": "text", "at_ms": 0, "text": json.dumps(options)}] if options else []
        audio = np.frombuffer(request.raw_input_contents[0], np.int16)
        answer = messages.ModelInferResponse(model_name="duplex")
        for name, kind, shape, data in (
            ("AUDIO_OUT", "INT16", [1, OUTPUT_SAMPLES], np.resize(audio, OUTPUT_SAMPLES).tobytes()),
            ("TEXT", "BYTES", [1, 1], _bytes("")),
            ("EVENTS", "BYTES", [1, 1], _bytes(json.dumps(events))),
        ):
            answer.outputs.add(name=name, datatype=kind, shape=shape)
            answer.raw_output_contents.append(data)
        return answer


def _value(parameter: messages.InferParameter) -> Any:
    return getattr(parameter, str(parameter.WhichOneof("parameter_choice")))


def _bytes(text: str) -> bytes:
    """Return one element of Triton's type BYTES."""
    return bytes(serialize_byte_tensor(np.array([text], object)).item())


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def fake_bridge(slots: int = 2, **bridge: Any) -> Iterator[tuple[str, FakeTriton]]:
    """Run a bridge before a fake Triton; yields its `host:port` and the fake."""
    ports, fake = (free_port(), free_port()), FakeTriton(slots)
    settings = Settings.load(environ={}).with_values(
        triton={"grpc_port": ports[0]},
        engine={"dialect": "turn"},
        bridge={"port": ports[1], "read_timeout_s": 3, **bridge},
    )
    app = create_app(settings)
    server = uvicorn.Server(uvicorn.Config(app, port=ports[1], log_level="warning", ws="websockets-sansio"))

    async def run() -> None:
        triton = grpc.aio.server()
        service.add_GRPCInferenceServiceServicer_to_server(fake, triton)
        triton.add_insecure_port(f"127.0.0.1:{ports[0]}")
        await triton.start()
        await server.serve()
        await triton.stop(None)

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + READY_S
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{ports[1]}/readyz"):
                break
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield f"127.0.0.1:{ports[1]}", fake
    finally:
        server.should_exit = True
        thread.join(30)
