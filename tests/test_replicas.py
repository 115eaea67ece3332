"""Two servers behind a stock balancer: no conversation is split, and the other server is tried if one is full."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import ExitStack

import numpy as np
from websockets.sync.client import connect

from client.python_websocket import talk
from frontend.failover.replayable import HandOver, ReplayableTicks
from frontend.tick import TickIn
from tests.pair import SLOTS, Pair
from tests.probes import BACK_S, EMPTY_S, is_ready, speak, taken, triton_of, wait_for_readiness, wait_until
from tests.sockets import event, send_unless_closed
from tests.turns import TICK


def test_output_of_simultaneous_conversations_on_both_servers_equals_that_of_single_ones(pair: Pair, questions):
    """Spoken questions and their answers; the audio equals that of the only conversation on one server."""
    spoken = [np.roll(questions[number % 2], -number * TICK)[: 5 * TICK].tobytes() for number in range(4)]

    def answers_to(address: str, sounds: list[bytes], *taken: int) -> list[np.ndarray]:
        """Speak and commit each sound in a conversation; return the audio of each until its answer has ended."""
        clients = [pair.open_client(address, "detection=manual") for _ in sounds]
        for client, sound in zip(clients, sounds, strict=True):
            client.send_audio(np.frombuffer(sound, np.int16))
        pair.wait_until_taken(*taken)
        for client in clients:
            client.send_event("commit")
            client.receive_tick()
        while not all(any(event["type"] == "answer_done" for event in client.events) for client in clients):
            for client in clients:
                client.socket.send(bytes(2 * TICK))
            for client in clients:
                client.receive_tick()
        for client in clients:
            client.socket.close()
        pair.wait_until_taken(0, 0)
        return [np.concatenate(client.sounds) for client in clients]

    expected_sounds = [answers_to(pair.servers[0].websocket, [sound], 1, 0)[0] for sound in spoken]
    sounds = answers_to(pair.bridge.websocket, spoken, 2, 2)
    assert sum(bool(expected.any()) for expected in expected_sounds) > 1, "expected answers with audio"
    for found, expected in zip(sounds, expected_sounds, strict=True):
        length = min(len(found), len(expected))
        assert np.abs(found[:length].astype(int) - expected[:length]).max() <= 1, "one step of PCM16"


def test_conversation_refused_by_a_full_server_begins_on_the_other(pair: Pair, pcm):
    """The balancer does not know the slots: the bridge tries the other server. Two slots are free, both on one."""
    full, other = pair.servers
    with ExitStack() as stack:
        for server, count in ((full, SLOTS), (other, SLOTS - 2)):
            for _ in range(count):
                speak(stack.enter_context(connect(server.websocket)), pcm)
        pair.wait_until_taken(SLOTS, SLOTS - 2)
        for count in (SLOTS - 1, SLOTS):
            speak(stack.enter_context(connect(pair.bridge.websocket)), pcm)
            wait_until(lambda count=count: taken(other) == count, EMPTY_S)
        refused = stack.enter_context(connect(pair.bridge.websocket))
        refused.send(pcm[:TICK].tobytes())
        assert event(refused, "error")["code"] == "full"
    with connect(pair.bridge.websocket) as client:
        speak(client, pcm)


def test_rolling_restart_loses_no_conversation(pair: Pair, pcm):
    """An operator's steps: drain a server, wait until the server is empty, restart and enable it; then the other."""
    failures: list[Exception] = []
    lengths: list[int] = []
    over = threading.Event()

    def keep_talking() -> None:
        address = f"{pair.bridge.websocket}?detection=manual"
        while not over.is_set():
            try:
                lengths.append(len(asyncio.run(talk(address, pcm[: 4 * TICK].tobytes())).pcm))
            except Exception as error:  # the test reports every one
                failures.append(error)

    def wait_for_conversations(count: int) -> None:
        """Wait until more than `count` further conversations have ended, the last of which began after this call."""
        known = len(lengths)
        wait_until(lambda: len(lengths) > known + count or bool(failures), BACK_S)

    load = threading.Thread(target=keep_talking)
    load.start()
    try:
        for name, server in zip(("first", "second"), pair.servers, strict=True):
            with connect(pair.bridge.websocket) as patient:  # begun before the drain
                speak(patient, pcm)
                assert pair.balancer.send(f"set server tritons/{name} state drain") == ""
                for _ in range(6):
                    speak(patient, pcm)
                wait_for_conversations(1)
                speak(patient, pcm)
            wait_until(lambda server=server: taken(server) == 0, EMPTY_S)
            os.kill(triton_of(server), signal.SIGTERM)
            wait_for_readiness(server, False, EMPTY_S)
            wait_for_conversations(1)  # on the other server: the balancer sends none to this one
            wait_for_readiness(server, True, BACK_S)
            assert pair.balancer.send(f"set server tritons/{name} state ready") == ""
            pair.balancer.wait_until_up(name)  # before the next one is drained
    finally:
        over.set()
        load.join()
    assert not failures
    assert all(length >= 4 * 15360 for length in lengths)


def test_killed_balancer_fails_its_conversations_and_comes_back(pair: Pair, pcm):
    with connect(pair.bridge.websocket) as client:
        speak(client, pcm)
        pair.balancer.kill()
        send_unless_closed(client, pcm[:TICK].tobytes())
        assert event(client, "error")["code"] == "tick_failed"
    assert not is_ready(pair.bridge)
    pair.balancer.start()
    wait_for_readiness(pair.bridge, True, BACK_S)
    with connect(pair.bridge.websocket) as client:
        speak(client, pcm)


def test_superseded_reader_gets_no_tick():
    """The task of the lost server is not cancelled yet when the next reader begins."""

    async def ticks() -> AsyncIterator[int]:
        for number in range(3):
            await asyncio.sleep(0.02)
            yield number

    async def check() -> None:
        shared = HandOver(ticks())
        left_behind = asyncio.ensure_future(anext(shared.read(shared.take_over()), "nothing"))
        await asyncio.sleep(0)
        assert [tick async for tick in shared.read(shared.take_over())] == [0, 1, 2]
        assert await left_behind == "nothing"

    asyncio.run(check())


def test_unanswered_ticks_are_repeated():
    """Also a tick that was pending when the first server refused."""

    async def ticks() -> AsyncIterator[TickIn]:
        for number in range(4):
            await asyncio.sleep(0.02)
            yield TickIn(bytes([number]))

    async def check() -> None:
        given = ReplayableTicks(ticks())
        first = given.replay()
        assert [(await anext(first)).pcm[0] for _ in range(2)] == [0, 1]
        waiting = asyncio.ensure_future(anext(first))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        second = given.replay()
        assert [(await anext(second)).pcm[0] for _ in range(3)] == [0, 1, 2]
        given.settle()
        assert [tick.pcm[0] async for tick in second] == [3]
        given.close()

    asyncio.run(check())
