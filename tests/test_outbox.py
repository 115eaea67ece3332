"""The bounds of the messages that wait for a client."""

from __future__ import annotations

import asyncio

from fastapi import WebSocketDisconnect

from frontend.session.ended import EVENT_TOO_LONG, READS_NOTHING, CloseCode, Ended
from frontend.session.outbox import Outbox


class FakeChannel:
    """A channel that accepts messages, hangs, or fails."""

    def __init__(self, failure: Exception | None = None, hangs: bool = False):
        self.sent: list[str] = []
        self._failure, self._hangs = failure, hangs

    async def send_text(self, data: str) -> None:
        if self._hangs:
            await asyncio.Event().wait()
        if self._failure:
            raise self._failure
        self.sent.append(data)

    async def close(self, code: int = 1000) -> None:
        self.close_code = code


def write(
    channel: FakeChannel, *messages: str, read_timeout_s: float = 1000, **bounds: int
) -> tuple[int, Ended | None]:
    """Put messages and write them; returns the number that was accepted, and the reason why the client is lost."""

    async def run() -> tuple[int, Ended | None]:
        outbox = Outbox(channel, read_timeout_s, **bounds)
        accepted = sum(outbox.put(message) for message in messages)
        outbox.finish()
        return accepted, await outbox.write()

    return asyncio.run(asyncio.wait_for(run(), 20))


def test_messages_are_sent_in_order():
    channel = FakeChannel()
    assert write(channel, "a", "b", "c") == (3, None)
    assert channel.sent == ["a", "b", "c"]


def test_number_of_waiting_messages_is_bounded_and_the_rest_is_dropped():
    channel = FakeChannel()
    assert write(channel, *"abc", max_messages=2) == (2, None)
    assert channel.sent == []


def test_bytes_of_waiting_messages_are_bounded():
    channel = FakeChannel()
    assert write(channel, "한" * 10, "한" * 10, max_bytes=50) == (1, None)
    assert write(channel, "한" * 100, max_bytes=50) == (1, None), "one message may be longer: the queue is empty"
    assert channel.sent == ["한" * 100]


def test_client_that_reads_nothing_is_lost_after_the_timeout():
    assert write(FakeChannel(hangs=True), "a", read_timeout_s=0.01) == (1, READS_NOTHING)


def test_client_that_has_left_is_no_fault():
    assert write(FakeChannel(WebSocketDisconnect()), "a") == (1, None)


def test_message_beyond_a_data_channels_size_ends_the_call():
    assert write(FakeChannel(ValueError()), "a") == (1, EVENT_TOO_LONG)


def test_stalled_channel_is_closed_in_time():
    class Stalled(FakeChannel):
        async def close(self, code: int = 1000) -> None:
            await asyncio.Event().wait()

    async def run() -> None:
        await Outbox(Stalled(), 0.01).close(CloseCode.NORMAL)

    asyncio.run(asyncio.wait_for(run(), 20))
