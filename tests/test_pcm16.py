"""One conversation over /ws/pcm16, whose client and whose engine are the test."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

from websockets.asyncio.server import serve

from client.python_websocket import talk
from config import Settings
from contract.events import Reset, SpeechStarted
from frontend.floor import Floor
from frontend.pcm16.conversation import Pcm16Conversation
from frontend.pcm16.resumable_socket import ResumableSockets
from frontend.session.session import EngineSession
from frontend.tick import TickIn, TickOut

TICK, ANSWER = bytes(10240), bytes(15360)


class Client:
    """A WebSocket that says its messages, one a while, and then `end`, unless it stays."""

    query_params: dict[str, str] = {}  # noqa: RUF012 (never changed)

    def __init__(self, messages: list[bytes | str], pause_s: float, leaves: bool = False):
        self._messages, self._pause_s, self._leaves = list(messages), pause_s, leaves
        self.received: list[dict[str, Any]] = []
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
        self.received.append(json.loads(data))

    async def send_bytes(self, data: bytes) -> None: ...

    async def close(self, code: int = 1000) -> None:
        self.close_code = code


async def converse_with(client: Client, converse, **engine: Any) -> None:
    """Run a whole conversation."""
    settings = Settings.load(environ={}).with_values(engine={"dialect": "turn", **engine})
    bridge = SimpleNamespace(
        settings=settings,
        engine=SimpleNamespace(voices=("ethan",)),
        session=lambda place, protocol: EngineSession(settings.bridge, converse, place, protocol),
    )
    place = SimpleNamespace(caller=SimpleNamespace(name="test"), take=lambda: None, leave=lambda: None)
    await asyncio.wait_for(Pcm16Conversation(client, bridge, place, ResumableSockets()).run(), 20)


def test_client_is_not_idle_while_its_server_is_lost():
    """No server reads the audio for longer than `engine.idle_timeout_s`, as in a move; the client keeps speaking."""

    async def converse(_, ticks: AsyncIterator[TickIn]):
        async for tick in ticks:
            if tick.start:
                await asyncio.sleep(1.5)
            yield TickOut(ANSWER, "", [])

    client = Client([TICK] * 24 + ['{"type": "end"}'], 0.15)
    asyncio.run(converse_with(client, converse, idle_timeout_s=1))
    assert [event for event in client.received if event["type"] == "error"] == []
    assert client.close_code == 1000


def test_client_that_leaves_during_its_last_tick_ends_the_conversation():
    """Its answer may never come."""

    async def converse(_, ticks: AsyncIterator[TickIn]):
        answered = False
        async for _ in ticks:
            if not answered:
                yield TickOut(ANSWER, "", [SpeechStarted(at_ms=0)])
            answered = True

    client = Client([TICK, '{"type": "end"}'], 0.05, leaves=True)
    asyncio.run(converse_with(client, converse))


def test_floor_is_quiet_after_a_reset():
    """The engine sends no `speech_stopped` for who spoke before."""
    turns = Floor(creates_responses=True)
    turns.note(SpeechStarted(at_ms=0))
    turns.note(Reset(at_ms=0))
    assert turns.is_quiet


def test_client_continues_if_the_bridge_leaves_out_silence():
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
