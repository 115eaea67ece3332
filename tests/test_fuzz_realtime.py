"""/v1/realtime under a client that does anything at any time, over a WebSocket and with a real engine behind it.

The order of events in general is tested in process (tests/test_pairing.py); here is what only a wire shows: frames that
are no events, ids of the server's events, real audio in the client's format, closes, and slots that become free.
"""

from __future__ import annotations

import base64
import json
import random
import re
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import soxr
from websockets.sync.client import connect

from tests.conftest import Served
from tests.pairing import speech
from tests.random_client import RandomClient
from tests.realtime.ledger import Event, Ledger
from tests.sockets import wait_until_empty
from tests.sound import SENTENCE, synthesize
from tests.test_fuzz import expect_error, go_on

WITHIN_S = 60
CANCEL_AGAIN_S = 1.0
SPEED = 10  # factor by which the client's pauses are shorter
PROBE = "after "  # begins the ids of events that are refused by their type, and so show that all before were handled
MALFORMED = ("invalid_json", "invalid_event", "unknown_event_type")
MALFORMED_FRAMES: list[str | bytes] = [
    '{"type": ',
    "[]",
    "null",
    '{"type": NaN}',
    "{}",
    '{"type": 5}',
    b"\0\1",
    "[" * 300,
]
ODD_AUDIO = base64.b64encode(b"\1\2\3").decode()


class ServedClient:
    """A client of a served bridge, with the interface of a `Pair`."""

    player = None

    def __init__(self, served: Served, spoken: bytes):
        """Connect; `spoken`: PCM16 at 24 kHz."""
        self.ledger = Ledger()
        self._spoken = spoken
        self._sent = 0
        self._event_ids: set[str] = set()
        self.socket = connect(served.websocket.replace("/ws/pcm16", "/v1/realtime"), max_size=None)
        assert self._receive()["type"] == "session.created"
        self.update(max_output_tokens=4)

    def send(self, kind: str, **fields: Any) -> str:
        """Send an event and wait until the server has handled it; return its id."""
        self._sent += 1
        event_id = f"event {self._sent}"
        if kind == "conversation.item.create":  # an id, because the server adds items of responses at the same time
            fields["item"] = {"id": f"item {self._sent}", **fields["item"]}
        self.ledger.request(event_id, kind, fields)
        self.socket.send(json.dumps({"type": kind, "event_id": event_id, **fields}))
        events = [event for event in self._probe() if not _names_another(event, event_id)]
        if kind == "conversation.item.create":
            created = fields["item"]["id"]
            events = [event for event in events if event.get("item", {}).get("id", created) == created]
        self.ledger.expect_reply(event_id, events)
        return event_id

    def send_malformed(self, frame: str | bytes) -> None:
        """Send a frame that is no event: it has one error."""
        self.socket.send(frame)
        codes = [event["error"]["code"] for event in self._probe() if event["type"] == "error"]
        assert len([code for code in codes if code in MALFORMED]) == 1

    def append(self, sound: Callable[[int], str], ms: int) -> None:
        pcm = self._spoken[: ms * 48] if sound is speech else bytes(ms * 48)
        self.send("input_audio_buffer.append", audio=base64.b64encode(pcm).decode())

    def respond(self, **wanted: Any) -> str:
        return self.send("response.create", response={**wanted, "metadata": {"name": f"event {self._sent + 1}"}})

    def update(self, **changes: Any) -> None:
        session: Event = {"type": "realtime", **changes}
        if "turn_detection" in session:
            session["audio"] = {"input": {"turn_detection": session.pop("turn_detection")}}
        if "max_output_tokens" in session:
            session["max_output_tokens"] = 4  # short answers
        self.send("session.update", session=session)

    def pass_time(self, seconds: float) -> None:
        until_s = time.monotonic() + seconds / SPEED
        while (left_s := until_s - time.monotonic()) > 0:
            try:
                self._receive(left_s)
            except TimeoutError:
                return

    def settle(self) -> None:
        """Wait until every request has had its answer; responses are cancelled, because random speech has no end."""
        deadline, cancelled_s = time.monotonic() + WITHIN_S, 0.0
        while not self.ledger.is_settled:
            assert time.monotonic() < deadline, f"after {WITHIN_S} s: {self.ledger}"
            if self.ledger.open and time.monotonic() - cancelled_s > CANCEL_AGAIN_S:
                cancelled_s = time.monotonic()
                for response in self.ledger.open:
                    self.send("response.cancel", response_id=response.created["id"])
            self.pass_time(0.1 * SPEED)

    def _probe(self) -> list[Event]:
        """Return the events until the server has handled all that was sent."""
        probe = f"{PROBE}{self._sent}"
        self.socket.send(json.dumps({"type": "probe", "event_id": probe}))
        events: list[Event] = []
        while not events or _named(events[-1]) != probe:
            events.append(self._receive())
        return events[:-1]

    def _receive(self, within_s: float = WITHIN_S) -> Event:
        event: Event = json.loads(self.socket.recv(timeout=within_s))
        assert event["event_id"] not in self._event_ids
        self._event_ids.add(event["event_id"])
        if event["type"] == "error":
            expect_error(event)
            assert event["error"]["type"] == "invalid_request_error", event
        if not (_named(event) or "").startswith(PROBE):
            self.ledger.take(event)
        return event


def _named(event: Event) -> str | None:
    """Return the id of the client's event that an error names."""
    return event["error"]["event_id"] if event["type"] == "error" else None


def _names_another(event: Event, event_id: str) -> bool:
    return event["type"] == "error" and _named(event) != event_id


def converse(served: Served, spoken: bytes, seed: int) -> None:
    """Assert the promises in one random conversation."""
    chance = random.Random(seed)
    one = ServedClient(served, spoken)
    with one.socket:
        client = RandomClient(chance, one)  # type: ignore[arg-type]
        for _ in range(25):
            client.act()
            if chance.random() < 0.1:
                one.send_malformed(chance.choice(MALFORMED_FRAMES))
            if chance.random() < 0.1:
                one.send("input_audio_buffer.append", audio=ODD_AUDIO)
        one.settle()
        for item_id in list(one.ledger.items):
            one.send("conversation.item.retrieve", item_id=item_id)
    assert one.socket.close_code == 1000
    wait_until_free(served)


def wait_until_free(served: Served) -> None:
    """Wait until neither the bridge nor the engine has a conversation left."""
    wait_until_empty(served)
    deadline = time.monotonic() + WITHIN_S
    while taken_slots(served):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def taken_slots(served: Served) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{served.settings.triton.metrics_port}/metrics") as response:
        found = re.search(r'^sca_slots\{.*what="taken".*\} (\S+)$', response.read().decode(), re.MULTILINE)
    assert found
    return float(found[1])


@pytest.mark.parametrize("count", [10, pytest.param(50, marks=pytest.mark.long)])
def test_random_client_over_a_websocket_gets_every_answer(served_turns: Served, count: int):
    spoken = soxr.resample(synthesize(SENTENCE, "en")[:16_000], 16_000, 24_000).astype(np.int16).tobytes()
    wait_until_free(served_turns)
    for seed in range(count):
        converse(served_turns, spoken, seed)
    go_on(served_turns)
