"""Several Tritons behind one bridge: the choice of a server for a conversation, and `./sca serve --servers`."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
from websockets.sync.client import ClientConnection, connect

from commands import serve as serve_command
from commands.console import UserError
from config import Settings, SettingsError
from contract.errors import ErrorCode
from frontend.failover.servers import Servers
from frontend.tick import TickError, TickIn, TickOut
from frontend.tracer import Tracer
from frontend.triton import EngineFacts
from tests.conftest import Served, sca, serve, serve_environment
from tests.probes import BACK_S, EMPTY_S, answer_kind, descendants, expect_nothing_left, speak, tritons_of, wait_until
from tests.sockets import send_unless_closed, wait_until_empty

END_S = 60  # timeout of the command's end
FULL = "all 2 slots hold a conversation (engine.slots), try again later"


class FakeLink:
    """A link that answers ticks, refuses as full, or raises; `ending`: full until a conversation has ended."""

    def __init__(self, trouble: str = "", ending: bool = False):
        self.trouble, self.ending, self.ids = trouble, ending, []

    async def ended(self, within_s: float) -> None:
        if self.ending:
            self.trouble = ""

    async def converse(self, sequence_id: int, ticks: AsyncIterator[TickIn]) -> AsyncIterator[TickOut | TickError]:
        self.ids.append(sequence_id)
        async for _ in ticks:
            if self.trouble == "missing":
                raise TickError("Triton does not answer")
            code = ErrorCode.FULL if self.trouble == FULL else ErrorCode.BAD_OPTION
            yield TickError(self.trouble, code) if self.trouble else TickOut(b"sound", "", [])


def servers(*links: FakeLink, replicas: int = 1) -> Servers:
    others = ",".join(f"10.0.0.{number}:8001" for number in range(1, len(links)))
    settings = Settings.load(environ={}).with_values(triton={"others": others, "replicas": replicas})

    async def made() -> Servers:  # a channel wants an event loop
        found = Servers(settings, Tracer())
        await found.close()
        return found

    found = asyncio.run(made())
    for member, link in zip(found.members, links, strict=True):
        member.link, member.facts = link, EngineFacts(slots=2)
    return found


def converse(servers: Servers, ticks: int = 2) -> list[TickOut | TickError]:
    async def given() -> AsyncIterator[TickIn]:
        for _ in range(ticks):
            yield TickIn(b"")

    async def run() -> list[TickOut | TickError]:
        return [answer async for answer in servers.converse(7, given())]

    return asyncio.run(run())


def test_server_with_fewest_conversations_is_chosen_and_a_dead_one_last():
    first, second, third = FakeLink(), FakeLink(), FakeLink()
    several = servers(first, second, third)
    assert several.slots == 6
    several.members[0].conversations = 1
    several.members[1].probe._failures, several.members[1].probe._problem = 2, "dead"
    assert len(converse(several)) == 2
    assert [link.ids for link in (first, second, third)] == [[], [], [7]]
    assert [member.conversations for member in several.members] == [1, 0, 0], "it has ended"
    assert several.problem is None
    several.members[2].facts = None
    assert several.slots == 0, "not known"


@pytest.mark.parametrize("trouble", [FULL, "missing"])
def test_refusal_of_one_server_is_followed_by_another(trouble):
    refusing, well = FakeLink(trouble), FakeLink()
    answers = converse(servers(refusing, well))
    assert [answer.pcm for answer in answers] == [b"sound"] * 2
    assert refusing.ids == [7]
    assert well.ids != [7], "by another id"


def test_refusal_of_all_servers_is_returned():
    (refusal, *_) = converse(servers(FakeLink(FULL), FakeLink(FULL)))
    assert isinstance(refusal, TickError)
    assert refusal.code is ErrorCode.FULL
    behind_a_balancer = FakeLink(FULL)
    converse(servers(behind_a_balancer, replicas=2))
    assert len(behind_a_balancer.ids) == 2 * 4, "a second round after a pause"
    alone = FakeLink(FULL)
    converse(servers(alone))
    assert len(alone.ids) == 2
    with pytest.raises(TickError, match="does not answer"):
        converse(servers(FakeLink("missing"), FakeLink("missing")))
    for links in ((FakeLink("missing"), FakeLink(FULL)), (FakeLink(FULL), FakeLink("missing"))):
        (refusal, *_) = converse(servers(*links))
        assert isinstance(refusal, TickError)
        assert refusal.code is ErrorCode.FULL, "a missing server does not hide the reason"
    (bad, *_) = converse(servers(FakeLink("voice is 'nobody'"), FakeLink()))
    assert str(bad) == "voice is 'nobody'", "a bad option is not sent to another server"


def test_conversation_waits_for_the_slot_of_one_that_is_ending():
    link = FakeLink(FULL, ending=True)
    assert [answer.pcm for answer in converse(servers(link))] == [b"sound"] * 2
    assert len(set(link.ids)) == 2


def test_list_of_servers_is_validated():
    with pytest.raises(SettingsError, match=r"triton\.others: expected servers such as .*, got '10\.0\.0\.7'"):
        Settings.load(environ={"SCA_TRITON_OTHERS": "10.0.0.7"})


def arguments(gpus: str | None = None, servers: int = 1) -> argparse.Namespace:
    return argparse.Namespace(gpus=gpus, servers=servers)


def test_each_gpu_has_its_own_server(monkeypatch):
    settings = Settings.load(environ={"SCA_TRITON_HTTP_PORT": "8010"})
    monkeypatch.setattr(serve_command, "gpu_count", lambda: 3)
    assert serve_command.devices_of(arguments(), settings) == ["auto"]
    assert serve_command.devices_of(arguments("all"), settings) == ["cuda:0", "cuda:1", "cuda:2"]
    assert serve_command.devices_of(arguments("2, 0"), settings) == ["cuda:2", "cuda:0"]
    for wrong in ("3", "0,0", "one"):
        with pytest.raises(UserError, match="expected all, or some of 0 to 2"):
            serve_command.devices_of(arguments(wrong), settings)
    each = serve_command.settings_of_each(settings, ["cuda:0", "cuda:2"])
    assert [one.qwen.device_map for one in each] == ["cuda:0", "cuda:2"]
    assert [one.triton.urls for one in each] == [("127.0.0.1:8001",), ("127.0.0.1:8011",)]
    assert [one.triton.http_port for one in each] == [8010, 8020]


def test_missing_gpus_are_named():
    run = sca("serve", "--gpus", "all")
    assert run.returncode == 1
    assert "torch finds no GPU here" in run.stderr
    assert "Traceback" not in run.stderr
    assert "--servers: expected a number from 1, got 0" in sca("serve", "--servers", "0").stderr


def test_one_command_keeps_two_servers_up_and_leaves_nothing_behind(tmp_path: Path, pcm):
    """One of its Tritons is killed; then Ctrl-C ends the command while a conversation is open."""
    log = tmp_path / "log"
    environment = serve_environment() | {"SCA_ENGINE_SLOTS": "2", "SCA_TRITON_HTTP_PORT": "0"}
    with contextmanager(serve)(environment, log, tmp_path / "build", "--servers", "2") as served:
        expect_both(served, log, pcm)
        processes = descendants(served.process.pid)
        wait_until_empty(served, seconds=EMPTY_S)
        with connect(served.websocket) as client:
            speak(client, pcm)
            served.process.send_signal(signal.SIGINT)
            assert served.process.wait(END_S) == 0
        assert "Traceback" not in log.read_text()
        expect_nothing_left(processes, served.process.pid)


def expect_both(served: Served, log: Path, pcm: np.ndarray) -> None:
    tritons = tritons_of(served)
    assert len(tritons) == 2
    with ExitStack() as stack:
        clients = conversations(stack, served, pcm)
        os.kill(tritons[0], signal.SIGKILL)
        for client in clients:
            send_unless_closed(client, pcm[:5120].tobytes())
        assert sorted(answer_kind(client) for client in clients) == ["error", "error", "sound", "sound"], "two on each"

    def is_back() -> bool:
        assert served.process.poll() is None
        return "Triton is back after" in log.read_text()

    wait_until(is_back, BACK_S)
    with ExitStack() as stack:
        conversations(stack, served, pcm)


def conversations(stack: ExitStack, served: Served, pcm: np.ndarray) -> list[ClientConnection]:
    """Open four conversations, as many as both servers hold, each with its first tick answered."""
    clients = [stack.enter_context(connect(served.websocket)) for _ in range(4)]
    for client in clients:
        speak(client, pcm)
    return clients
