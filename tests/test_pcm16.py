"""One conversation over /ws/pcm16, whose client and whose engine are the test."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from websockets.asyncio.server import serve

from client.python_websocket import talk
from config import Settings
from contract.events import Reset, SpeechStarted
from frontend import recording
from frontend.failover.replayable import ReplayableTicks
from frontend.floor import Floor
from frontend.pcm16.conversation import Pcm16Conversation
from frontend.pcm16.resumable_socket import ResumableSockets
from frontend.recording import Recorder
from frontend.session.session import EngineSession
from frontend.tick import TickIn, TickOut
from frontend.webrtc.aiortc_private import MAX_FRAGMENTS, MAX_STREAMS, bound_fragments

TICK, ANSWER = bytes(10240), bytes(15360)


class Client:
    """A WebSocket that says its messages, one a while, and then `end`, unless it stays."""

    query_params: dict[str, str] = {}  # noqa: RUF012 (never changed)

    def __init__(self, messages: list[bytes | str], pause_s: float, leaves: bool = False):
        self._messages, self._pause_s, self._leaves = list(messages), pause_s, leaves
        self.told: list[dict[str, Any]] = []
        self.close_code: int | None = None

    async def receive(self) -> dict[str, Any]:
        await asyncio.sleep(self._pause_s)
        if not self._messages:
            if self._leaves:
                return {"type": "websocket.disconnect", "code": 1000}
            await asyncio.Event().wait()
        message = self._messages.pop(0)
        kind = "text" if isinstance(message, str) else "bytes"
        return {"type": "websocket.receive", kind: message}

    async def send_text(self, data: str) -> None:
        self.told.append(json.loads(data))

    async def send_bytes(self, data: bytes) -> None: ...

    async def close(self, code: int = 1000) -> None:
        self.close_code = code


async def hold(client: Client, converse, **engine: Any) -> None:
    """A whole conversation."""
    settings = Settings.load(environ={}).with_values(engine={"dialect": "turn", **engine})
    bridge = SimpleNamespace(
        settings=settings,
        engine=SimpleNamespace(voices=("ethan",)),
        session=lambda place, protocol: EngineSession(settings.bridge, converse, place, protocol),
    )
    place = SimpleNamespace(caller=SimpleNamespace(name="test"), take=lambda: None, leave=lambda: None)
    await asyncio.wait_for(Pcm16Conversation(client, bridge, place, ResumableSockets()).run(), 20)


def test_a_client_is_not_idle_while_its_server_is_away():
    """Nobody takes its sound for longer than `engine.idle_timeout_s`, as in a move; it has never stopped speaking."""

    async def converse(_, ticks: AsyncIterator[TickIn]):
        async for tick in ticks:
            if tick.start:
                await asyncio.sleep(1.5)
            yield TickOut(ANSWER, "", [])

    client = Client([TICK] * 24 + ['{"type": "end"}'], 0.15)
    asyncio.run(hold(client, converse, idle_timeout_s=1))
    assert [event for event in client.told if event["type"] == "error"] == []
    assert client.close_code == 1000


def test_a_client_that_leaves_while_its_last_tick_is_answered_leaves_nothing():
    """Its answer may never come."""

    async def converse(_, ticks: AsyncIterator[TickIn]):
        answered = False
        async for _ in ticks:
            if not answered:
                yield TickOut(ANSWER, "", [SpeechStarted(at_ms=0)])
            answered = True

    client = Client([TICK, '{"type": "end"}'], 0.05, leaves=True)
    asyncio.run(hold(client, converse))


def test_nobody_speaks_in_a_conversation_that_has_begun_anew():
    """The engine sends no `speech_stopped` for who spoke before."""
    turns = Floor(creates_responses=True)
    turns.note(SpeechStarted(at_ms=0))
    turns.note(Reset(at_ms=0))
    assert turns.is_quiet


def test_a_tick_that_comes_while_others_are_given_again_is_not_lost():
    """The server that refused still waits for the next one."""

    async def check() -> None:
        source: asyncio.Queue[int] = asyncio.Queue()

        async def ticks() -> AsyncIterator[int]:
            while True:
                yield await source.get()

        given = ReplayableTicks(ticks())
        refused, seen = given.replay(), []
        for number in (1, 2):
            source.put_nowait(number)
            seen.append(await anext(refused))
        waiting = asyncio.ensure_future(anext(refused, None))
        await asyncio.sleep(0)
        other = given.replay()
        got = [await anext(other)]
        source.put_nowait(3)
        await asyncio.sleep(0.01)
        source.put_nowait(4)
        got += [await anext(other) for _ in range(3)]
        assert got == [1, 2, 3, 4]
        assert await waiting is None
        given.close()

    asyncio.run(asyncio.wait_for(check(), 5))


def test_the_client_goes_on_where_the_bridge_leaves_out_silence():
    """What has caught up a lag has given less sound than time."""

    async def speak(socket) -> None:
        await socket.send(json.dumps({"type": "conversation.opened", "dialect": "turn", "tick_ms": 320}))
        heard = ticks = 0
        async for message in socket:
            if isinstance(message, str):
                await socket.close()
                return
            heard += len(message)
            while heard >= (ticks + 1) * len(TICK):
                ticks += 1
                await socket.send(b"\0\0" if 2 <= ticks < 8 else ANSWER)

    async def check() -> None:
        async with serve(speak, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            answer = await asyncio.wait_for(talk(f"ws://127.0.0.1:{port}", TICK * 3), 10)
            assert answer.ticks * 0.32 > 3 * 0.32 + 1

    asyncio.run(check())


def test_a_disk_that_hangs_takes_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    monkeypatch.setattr(recording, "MAX_WAITING", 5)
    recorder, hangs = Recorder(tmp_path, "1"), threading.Event()
    recorder._thread.submit(hangs.wait)

    async def ticks() -> AsyncIterator[TickIn]:
        for _ in range(50):
            yield TickIn(TICK)

    async def run() -> None:
        async for _ in recorder.ticks(ticks()):
            recorder.answered(TickOut(ANSWER, "", []))

    asyncio.run(run())
    assert len(recorder._writing) == 5
    assert "takes too long to write" in caplog.text
    hangs.set()
    recorder.end()


@pytest.mark.parametrize("attack", ["a message without end", "many streams"])
def test_fragments_that_never_make_a_message_are_bounded(attack: str):
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
