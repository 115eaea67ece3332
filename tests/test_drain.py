"""The end of a bridge."""

from __future__ import annotations

import asyncio
import signal
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from config import Settings
from frontend.bridge import Bridge
from tests.bridges import bridge
from tests.conftest import Served, wait_until_answered
from tests.sockets import event

DRAIN_S = 2


def test_open_conversations_are_notified_and_have_time_to_end(tmp_path: Path, served: Served, pcm):
    with bridge(served, tmp_path / "log", drain_s=str(DRAIN_S)) as running:
        wait_until_answered(f"{running.http}/readyz", running.process, running.log)
        with connect(running.websocket) as client:
            client.send(pcm[:5120].tobytes())
            event(client, "text")
            running.process.send_signal(signal.SIGTERM)
            assert event(client, "draining") == {"type": "draining", "seconds": DRAIN_S}
            with pytest.raises(urllib.error.HTTPError, match="503"):
                urllib.request.urlopen(f"{running.http}/readyz")
            with pytest.raises(InvalidStatus) as refused:
                connect(running.websocket)
            assert refused.value.response.status_code == 503
            client.send(pcm[:5120].tobytes())
            event(client, "text")
            assert event(client, "error")["code"] == "draining"
            with pytest.raises(ConnectionClosed) as closed:
                client.recv(timeout=5)
            assert closed.value.rcvd.code == 1001
        assert running.process.wait(10) == 0
        assert "ASGI" not in running.log.read_text(), "a refusal is no error of the bridge"


def test_end_waits_for_closes_in_progress(monkeypatch):
    """A conversation that was ended waits for its last tick: the server must not close its WebSocket before."""
    monkeypatch.setenv("SCA_BRIDGE_DRAIN_S", "0")
    the_bridge = Bridge(Settings.load())

    class Slow:
        """A conversation whose WebSocket is closed a while after its end."""

        is_closed = False

        async def notify(self, _: object) -> None: ...

        async def end(self, *_: object) -> None:
            self.closing = asyncio.create_task(self.close())

        async def close(self) -> None:
            await asyncio.sleep(0.3)
            self.is_closed = True
            the_bridge.open.discard(self)

    async def drain() -> None:
        slow = Slow()
        the_bridge.open.add(slow)
        await the_bridge.drain()
        assert slow.is_closed

    asyncio.run(drain())


def test_bridge_without_conversations_ends_at_once(tmp_path: Path, served: Served):
    with bridge(served, tmp_path / "log", drain_s="600") as running:
        wait_until_answered(f"{running.http}/readyz", running.process, running.log)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(60) == 0
