"""Bounds of a call's data channel."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from frontend.webrtc.aiortc_private import MAX_FRAGMENTS, MAX_STREAMS, bound_fragments


@pytest.mark.parametrize("attack", ["a message without end", "many streams"])
def test_fragments_of_unfinished_messages_are_bounded(attack: str):
    class Transport:
        def __init__(self) -> None:
            self._inbound_streams: dict[int, Any] = {}

        def _get_inbound_stream(self, number: int) -> Any:
            return self._inbound_streams.setdefault(number, SimpleNamespace(reassembly=[]))

        async def _receive_data_chunk(self, chunk: Any) -> None:
            self._get_inbound_stream(chunk.stream_id).reassembly.append(chunk)

    async def check() -> None:
        transport, hung_up = Transport(), []
        bound_fragments(transport, lambda: hung_up.append(True))
        for number in range(5000):
            stream = number if attack == "many streams" else 0
            await transport._receive_data_chunk(SimpleNamespace(stream_id=stream, data=np.zeros(1)))
        assert hung_up
        assert sum(len(stream.reassembly) for stream in transport._inbound_streams.values()) <= MAX_FRAGMENTS + 1
        assert len(transport._inbound_streams) <= MAX_STREAMS + 1

    asyncio.run(check())
