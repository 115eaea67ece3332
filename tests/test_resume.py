"""A network that drops: the conversation goes on over another WebSocket, at the right sample."""

from __future__ import annotations

import asyncio
import json
import random
import time
from contextlib import suppress
from socket import SHUT_RDWR

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from client.python_grpc import converse
from client.python_websocket import talk
from tests.conftest import RESUME_S, Served
from tests.sockets import event, health, rest, wait_until_empty
from tests.sound import is_same_sound
from tests.test_triton import TICK

TICKS = 12
PART = 1600  # samples of a message


class Traveller:
    """A client that keeps what it has sent and counts what it has got, as one has to that comes back."""

    def __init__(self, served: Served, options: str = "resumable=true"):
        self._served = served
        self.sent: list[bytes | str] = []
        self.received: list[bytes | str] = []
        self.drops = 0
        self.socket = connect(f"{served.websocket}?{options}")
        self.opened = json.loads(self.hear())

    def hear(self) -> bytes | str:
        """Return the next message."""
        self.received.append(self.socket.recv(timeout=20))
        return self.received[-1]

    def send(self, message: bytes | str) -> None:
        """Send a message, or keep it until the network is back."""
        self.sent.append(message)
        try:
            self.socket.send(message)
        except ConnectionClosed:
            self.come_back()

    def drop(self) -> None:
        """Drop the network, without a close frame."""
        self.drops += 1
        with suppress(OSError):  # the network is lost already
            self.socket.socket.shutdown(SHUT_RDWR)

    def come_back(self) -> None:
        """Continue over another WebSocket."""
        self.socket = self.call_again(self.opened["resume_token"], str(len(self.received)))
        resumed = json.loads(self.socket.recv(timeout=20))
        assert resumed["type"] == "conversation.resumed", resumed
        for message in self.sent[resumed["received"] :]:
            self.socket.send(message)

    def call_again(self, token: str, received: str) -> ClientConnection:
        return connect(f"{self._served.websocket}?resume={token}&received={received}")

    def hear_the_rest(self) -> int:
        """Receive until the bridge closes; returns the close code."""
        while True:
            try:
                self.hear()
            except ConnectionClosed as closed:
                if closed.rcvd:
                    return closed.rcvd.code
                self.come_back()

    @property
    def sound(self) -> np.ndarray:
        return np.frombuffer(b"".join(m for m in self.received if isinstance(m, bytes)), np.int16)

    @property
    def text(self) -> str:
        events = [json.loads(m) for m in self.received if isinstance(m, str)]
        return "".join(event["text"] for event in events if event["type"] == "text")


def parts(pcm: np.ndarray) -> list[bytes]:
    samples = pcm[: TICKS * TICK]
    return [samples[start : start + PART].tobytes() for start in range(0, len(samples), PART)]


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(4, 60))])
def test_resumed_conversation_equals_one_without_a_loss(served: Served, pcm, seed):
    """The network drops at random moments, messages of both directions on their way."""
    expected, text = converse(served.triton_grpc, pcm[: TICKS * TICK])
    chance, traveller = random.Random(seed), Traveller(served)
    for part in parts(pcm):
        traveller.send(part)
        if chance.random() < 0.1:
            traveller.drop()
        elif chance.random() < 0.3 and len(traveller.received) < len(traveller.sent) / 4:
            try:
                traveller.hear()
            except ConnectionClosed:
                traveller.come_back()
        time.sleep(chance.choice((0, 0, 0.02)))
    traveller.drop()
    traveller.come_back()
    traveller.send(json.dumps({"type": "end"}))
    traveller.hear_the_rest()
    heard = traveller.sound
    assert is_same_sound(heard[: len(expected)], expected)
    assert not heard[len(expected) :].any() or len(heard) - len(expected) <= 7680, "the tick that carries the end"
    assert traveller.text.startswith(text)
    assert traveller.drops >= 2
    wait_until_empty(served)


@pytest.mark.parametrize("comebacks", [2, 5])
def test_repeated_resumes_duplicate_nothing(served: Served, pcm, comebacks):
    """A network that drops while what was missed is being sent: only the last WebSocket is read."""
    expected, _ = converse(served.triton_grpc, pcm[: TICKS * TICK])
    traveller = Traveller(served)
    for number, part in enumerate(parts(pcm)):
        traveller.send(part)
        if number % 9 == 8:
            for _ in range(comebacks):
                traveller.drop()
                traveller.come_back()
    traveller.send(json.dumps({"type": "end"}))
    traveller.hear_the_rest()
    assert is_same_sound(traveller.sound[: len(expected)], expected)
    wait_until_empty(served)


def test_client_may_resume_before_the_bridge_notices_the_loss(served: Served, pcm):
    """A phone that changes its network: the old WebSocket still stands when the new one comes, and is closed."""
    expected, _ = converse(served.triton_grpc, pcm[: 4 * TICK])
    traveller = Traveller(served)
    traveller.send(pcm[: 2 * TICK].tobytes())
    while len(traveller.sound) < 7680:
        traveller.hear()
    before = traveller.socket
    traveller.come_back()
    assert rest(before)[1] == 1001
    traveller.send(pcm[2 * TICK : 4 * TICK].tobytes())
    while len(traveller.sound) < 4 * 7680:
        traveller.hear()
    assert is_same_sound(traveller.sound, expected)
    assert health(served)["conversations"] == 1
    traveller.socket.close()
    wait_until_empty(served)


def test_slot_is_free_if_the_client_does_not_resume(served: Served, pcm):
    """The slot waits for `bridge.resume_s`, others talk meanwhile; then it is free, and the token is worth nothing."""
    wait_until_empty(served)
    traveller = Traveller(served)
    assert traveller.opened["resume_s"] == RESUME_S
    traveller.send(pcm[:TICK].tobytes())
    while not traveller.sound.size:
        traveller.hear()
    traveller.drop()
    dropped = time.monotonic()
    answer = asyncio.run(talk(served.websocket, pcm[:TICK].tobytes()))
    assert len(answer.pcm) >= 15360
    assert health(served)["conversations"] == 1
    wait_until_empty(served, seconds=RESUME_S + 60)
    assert time.monotonic() - dropped > RESUME_S - 0.5
    with traveller.call_again(traveller.opened["resume_token"], str(len(traveller.received))) as late:
        assert "no conversation waits for this token" in event(late, "error")["message"]
        assert rest(late)[1] == 1008


@pytest.mark.parametrize("received", ["-1", "x", "", "9" * 30, "1000000"])
def test_bad_count_is_refused_and_the_conversation_can_still_be_resumed(served: Served, pcm, received):
    traveller = Traveller(served)
    traveller.send(pcm[:TICK].tobytes())
    traveller.drop()
    with traveller.call_again(traveller.opened["resume_token"], received) as stranger:
        error = event(stranger, "error")
        assert error["code"] in ("bad_option", "cannot_resume")
        assert received[:10] in error["message"]
        assert rest(stranger)[1] == 1008
    traveller.come_back()
    while not traveller.sound.size:
        traveller.hear()
    traveller.socket.close()


def test_client_without_the_option_has_no_token_and_holds_no_slot(served: Served, pcm):
    traveller = Traveller(served, "")
    assert "resume_token" not in traveller.opened
    traveller.send(pcm[:TICK].tobytes())
    while not traveller.sound.size:
        traveller.hear()
    traveller.drop()
    deadline = time.monotonic() + 2
    while health(served)["conversations"]:
        assert time.monotonic() < deadline, "long before bridge.resume_s is over"
        time.sleep(0.02)


def test_turn_continues_after_a_loss_of_the_network(served_turns: Served, pcm):
    """A question is cut in two by the network; it is one turn, and its answer is the same."""
    answers = []
    for drops in (False, True):
        traveller = Traveller(served_turns, "resumable=true&detection=manual&seed=3")
        traveller.send(pcm[: 3 * TICK].tobytes())
        if drops:
            traveller.drop()
            traveller.come_back()
        traveller.send(pcm[3 * TICK : 6 * TICK].tobytes())
        traveller.send(json.dumps({"type": "commit"}))
        if drops:
            traveller.drop()
            traveller.come_back()
        traveller.send(json.dumps({"type": "end"}))
        assert traveller.hear_the_rest() == 1000
        answers.append((traveller.text, traveller.sound))
    assert answers[0][0] == answers[1][0]
    assert is_same_sound(answers[0][1], answers[1][1])
    assert answers[0][1].any()
