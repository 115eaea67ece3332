"""The states of a resumable WebSocket, whose network is the test."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from config import Settings
from contract.errors import ErrorCode
from frontend.pcm16.frames import ProtocolError
from frontend.pcm16.resumable_socket import ResumableSocket, ResumableSockets, SocketState

SETTINGS = Settings.load(environ={}).bridge


class FakeSocket:
    """A WebSocket whose client sends nothing until `leave`, and whose network accepts messages, or none."""

    def __init__(self, accepts: bool = True):
        self.received: list[bytes | str] = []
        self.close_code: int | None = None
        self._accepts = accepts
        self._left: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def leave(self, code: int) -> None:
        self._left.set_result(code)

    async def receive(self) -> dict:
        return {"type": "websocket.disconnect", "code": await asyncio.shield(self._left)}

    async def send_bytes(self, data: bytes) -> None:
        if not self._accepts:
            await asyncio.Event().wait()
        self.received.append(data)

    send_text = send_bytes

    async def close(self, code: int) -> None:
        self.close_code = code


async def until(condition) -> None:
    while not condition():
        await asyncio.sleep(0)


def run(check) -> None:
    asyncio.run(asyncio.wait_for(check(), 20))


def test_stalled_network_does_not_delay_a_client_that_resumes():
    """The message that was being sent is sent again, before bridge.read_timeout_s is over."""

    async def check() -> None:
        socket = ResumableSocket(FakeSocket(accepts=False), replace(SETTINGS, read_timeout_s=1000), is_resumable=True)
        sending = asyncio.create_task(socket.send(b"first"))
        await asyncio.sleep(0.01)
        assert not sending.done()
        other = FakeSocket()
        resuming = asyncio.create_task(socket.resume(other, 0))
        await sending
        await socket.send(b"second")
        assert [json.loads(other.received[0])["type"], *other.received[1:]] == [
            "conversation.resumed", b"first", b"second",
        ]  # fmt: skip
        assert socket.state is SocketState.CURRENT
        socket.cut()
        await resuming

    run(check)


@pytest.mark.parametrize(("code", "state"), [(1000, SocketState.CLOSED), (1006, SocketState.AWAY)])
def test_client_may_resume_unless_it_has_said_goodbye(code: int, state: SocketState):
    async def check() -> None:
        network = FakeSocket()
        socket = ResumableSocket(network, SETTINGS, is_resumable=True)
        network.leave(code)
        await until(lambda: socket.state is not SocketState.CURRENT)
        assert socket.state is state
        assert socket.inbox.is_over == (state is SocketState.CLOSED)
        socket.cut()

    run(check)


def test_conversation_is_over_if_the_client_does_not_resume_in_time():
    async def check() -> None:
        network = FakeSocket()
        socket = ResumableSocket(network, replace(SETTINGS, resume_s=0.01), is_resumable=True)
        network.leave(1006)
        await until(lambda: socket.inbox.is_over)
        assert socket.state is SocketState.CLOSED
        with pytest.raises(ProtocolError, match="begin a new conversation"):
            await socket.resume(FakeSocket(), 0)

    run(check)


def test_client_that_accepts_nothing_is_stalled():
    async def check() -> None:
        socket = ResumableSocket(FakeSocket(accepts=False), replace(SETTINGS, read_timeout_s=0.01), is_resumable=True)
        await socket.send(b"first")
        assert socket.state is SocketState.STALLED
        assert socket.inbox.is_over
        socket.cut()
        assert socket.state is SocketState.STALLED, "the reason stays"

    run(check)


def test_network_that_drops_while_missed_messages_are_sent_leaves_the_client_away():
    async def check() -> None:
        network = FakeSocket()
        socket = ResumableSocket(network, replace(SETTINGS, read_timeout_s=1000), is_resumable=True)
        await socket.send(b"first")
        network.leave(1006)
        await until(lambda: socket.state is SocketState.AWAY)
        stalled = asyncio.create_task(socket.resume(FakeSocket(accepts=False), 0))
        await until(lambda: socket.state is SocketState.BEHIND)
        other = FakeSocket()
        resuming = asyncio.create_task(socket.resume(other, 1))
        await until(lambda: socket.state is SocketState.CURRENT)
        await stalled
        assert len(other.received) == 1
        socket.cut()
        await resuming

    run(check)


def test_token_is_known_while_the_conversation_runs():
    async def check() -> None:
        sockets, socket = ResumableSockets(), ResumableSocket(FakeSocket(), SETTINGS, is_resumable=True)
        assert socket.token
        with sockets.registered(socket):
            assert sockets.get(socket.token) is socket
        with pytest.raises(ProtocolError) as refused:
            sockets.get(socket.token)
        assert refused.value.code is ErrorCode.CANNOT_RESUME
        socket.cut()

    run(check)
