"""Both protocols as state machines that hypothesis drives: each answer is one that the state allows."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from websockets.sync.client import connect

from tests.conftest import Served
from tests.test_fuzz import SHORT, expect_error, go_on

LADDER = (  # of a response, in the order in which each may come once
    "response.created", "response.output_item.added", "response.content_part.added", "response.output_audio.done",
    "response.output_audio_transcript.done", "response.content_part.done", "response.output_item.done", "response.done",
)  # fmt: skip
WORDS = st.sampled_from(["a latte", "말해 줘", "🙂", "x" * 200])
LEAST_COMMIT_MS = 100
PART_MS = st.sampled_from([20, 60, 100, 400])
WITHIN_S = 30


def audio(ms: int) -> str:
    return base64.b64encode(bytes(48 * ms)).decode()


class RealtimeMachine(RuleBasedStateMachine):
    """A client that commits by itself, and knows what has to come back."""

    served: Served
    items = Bundle("items")

    def __init__(self) -> None:
        super().__init__()
        address = self.served.websocket.replace("/ws/pcm16", "/v1/realtime")
        self.socket = connect(address, max_size=None)
        self.asked = 0
        self.came: list[dict[str, Any]] = []
        self.known: dict[str, str] = {}  # items of ours: id, text
        self.gone: set[str] = set()
        self.buffer_ms = 0
        self.ladder: list[str] = []  # of the response that is open; empty where there is none
        no_detection = {"type": "realtime", "audio": {"input": {"turn_detection": None}}, "max_output_tokens": 40}
        self.step({"type": "session.update", "session": no_detection})

    def teardown(self) -> None:
        self.socket.close()

    def step(self, event: dict[str, Any]) -> list[dict[str, Any]]:
        """Sends an event; what has come when a later one is answered, and the errors of this one among it."""
        self.asked += 1
        mine, marker = f"event {self.asked}", f"marker {self.asked}"
        self.socket.send(json.dumps({**event, "event_id": mine}))
        self.socket.send(json.dumps({"type": "no.such.event", "event_id": marker}))
        found: list[dict[str, Any]] = []
        while not (found and found[-1]["type"] == "error" and found[-1]["error"]["event_id"] == marker):
            found.append(self.receive())
        errors = [each for each in found[:-1] if each["type"] == "error"]
        assert all(each["error"]["event_id"] in (mine, None) for each in errors), errors
        return found[:-1]

    def receive(self) -> dict[str, Any]:
        event = json.loads(self.socket.recv(timeout=WITHIN_S))
        self.came.append(event)
        kind = event["type"]
        if kind == "error":
            expect_error(event)
        if kind == "response.created":
            assert not self.ladder, "one response at a time"
        if kind in LADDER:
            assert kind == "response.created" or self.ladder, f"{kind} of no response"
            assert kind not in self.ladder, f"{kind} twice"
            assert not self.ladder or LADDER.index(kind) > LADDER.index(self.ladder[-1]), f"{kind} after {self.ladder}"
            self.ladder.append(kind)
        if kind == "response.done":
            assert event["response"]["status"] in ("completed", "cancelled", "incomplete")
            self.ladder = []
        return event

    @rule(ms=PART_MS)
    def append(self, ms: int) -> None:
        assert not self.errors(self.step({"type": "input_audio_buffer.append", "audio": audio(ms)}))
        self.buffer_ms += ms

    @rule()
    def clear(self) -> None:
        assert self.kinds(self.step({"type": "input_audio_buffer.clear"})).count("input_audio_buffer.cleared") == 1
        self.buffer_ms = 0

    @rule()
    def commit(self) -> None:
        """With too little sound the protocol's error; else an item, as soon as the engine has heard it."""
        found = self.step({"type": "input_audio_buffer.commit"})
        if self.buffer_ms < LEAST_COMMIT_MS - 20:  # what a resampler still holds is not counted
            assert self.errors(found) == ["input_audio_buffer_commit_empty"]
            return
        if self.buffer_ms > LEAST_COMMIT_MS + 20:
            assert self.errors(found) == []
            self.until("input_audio_buffer.committed", found)
        self.buffer_ms = 0

    @rule(target=items, role=st.sampled_from(["user", "assistant", "system"]), text=WORDS)
    def create(self, role: str, text: str) -> str:
        kind = "output_text" if role == "assistant" else "input_text"
        item = {"type": "message", "role": role, "content": [{"type": kind, "text": text}]}
        found = self.step({"type": "conversation.item.create", "item": item})
        (added,) = [
            each for each in found if each["type"] == "conversation.item.added" and each["item"]["role"] == role
        ]
        self.known[added["id"]] = text
        return str(added["id"])

    @rule(item=items)
    def retrieve(self, item: str) -> None:
        found = self.step({"type": "conversation.item.retrieve", "item_id": item})
        if item in self.gone:
            assert self.errors(found) == ["item_retrieve_invalid_item_id"]
        else:
            (told,) = [each for each in found if each["type"] == "conversation.item.retrieved"]
            assert told["item"]["content"][0]["text"] == self.known[item]

    @rule(item=consumes(items))
    def delete(self, item: str) -> None:
        found = self.step({"type": "conversation.item.delete", "item_id": item})
        assert "conversation.item.deleted" in self.kinds(found)
        self.gone.add(item)
        assert self.errors(self.step({"type": "conversation.item.delete", "item_id": item})) == [
            "item_delete_invalid_item_id"
        ]

    @rule(item_id=WORDS)
    def truncate_what_is_not_there(self, item_id: str) -> None:
        event = {"type": "conversation.item.truncate", "item_id": item_id, "content_index": 0, "audio_end_ms": 0}
        assert self.errors(self.step(event)) == ["item_truncate_invalid_item_id"]

    @rule()
    def respond(self) -> None:
        """One at a time; it is created at once, or when a commit before it is through."""
        was_open = bool(self.ladder)
        found = self.step({"type": "response.create"})
        if "conversation_already_has_active_response" in self.errors(found):
            assert was_open
        elif not was_open and not self.ladder and "response.created" not in self.kinds(found):
            self.until("response.created", found)

    @precondition(lambda self: not self.ladder)
    @rule()
    def cancel_nothing(self) -> None:
        assert self.errors(self.step({"type": "response.cancel"})) == ["response_cancel_not_active"]

    @precondition(lambda self: bool(self.ladder))
    @rule()
    def cancel(self) -> None:
        found = self.step({"type": "response.cancel"})
        assert self.errors(found) in ([], ["response_cancel_not_active"]), "it may have ended meanwhile"
        self.wait()

    @precondition(lambda self: bool(self.ladder))
    @rule()
    def wait(self) -> None:
        while self.ladder:
            self.receive()

    @invariant()
    def every_event_has_an_id_of_its_own(self) -> None:
        ids = [event["event_id"] for event in self.came]
        assert len(set(ids)) == len(ids)

    def until(self, kind: str, found: list[dict[str, Any]]) -> None:
        while kind not in self.kinds(found):
            found.append(self.receive())

    @staticmethod
    def kinds(found: list[dict[str, Any]]) -> list[str]:
        return [event["type"] for event in found]

    @staticmethod
    def errors(found: list[dict[str, Any]]) -> list[str]:
        return [event["error"]["code"] for event in found if event["type"] == "error"]


class Pcm16Machine(RuleBasedStateMachine):
    """A client of /ws/pcm16 in lockstep: a tick is answered by a tick, a control by an event or an error."""

    served: Served

    def __init__(self) -> None:
        super().__init__()
        self.socket = connect(f"{self.served.websocket}{SHORT}&detection=manual", max_size=None)
        assert json.loads(self.socket.recv())["type"] == "conversation.opened"
        self.is_answering = self.has_sound = False

    def teardown(self) -> None:
        self.socket.close()

    def tick(self) -> list[dict[str, Any]]:
        """A tick of silence, and the events of its answer."""
        self.socket.send(bytes(10_240))
        return self.hear()

    def hear(self) -> list[dict[str, Any]]:
        """Events up to the next sound."""
        events: list[dict[str, Any]] = []
        while isinstance(message := self.socket.recv(timeout=WITHIN_S), str):
            events.append(json.loads(message))
        for event in events:
            if event["type"] == "error":
                expect_error(event)
            if event["type"] == "answer_started":
                assert not self.is_answering
                self.is_answering = True
            elif event["type"] in ("answer_done", "interrupted"):
                self.is_answering = False
        return events

    @rule()
    def speak(self) -> None:
        assert not [event for event in self.tick() if event["type"] == "error"]

    @rule(text=WORDS)
    def write(self, text: str) -> None:
        was_answering = self.is_answering
        self.socket.send(json.dumps({"type": "message", "text": text}))
        kinds = [event["type"] for event in self.hear()]
        assert "committed" in kinds or "error" not in kinds
        assert not was_answering or "interrupted" in kinds or "answer_done" in kinds

    @rule()
    def cancel(self) -> None:
        was_answering = self.is_answering
        self.socket.send(json.dumps({"type": "cancel"}))
        events = self.tick()
        if was_answering:
            assert "interrupted" in [event["type"] for event in events]
        else:
            assert "nothing_to_cancel" in [event.get("code") for event in events] or any(
                event["type"] == "interrupted" for event in events
            ), "nothing, or an answer that was due"

    @rule(text=st.sampled_from(["", " ", "\0", "x" * 4001]))
    def write_nothing(self, text: str) -> None:
        self.socket.send(json.dumps({"type": "message", "text": text}))
        assert json.loads(self.socket.recv(timeout=WITHIN_S))["code"] == "bad_message"

    @rule()
    def transcript(self) -> None:
        self.socket.send(json.dumps({"type": "transcript"}))
        assert "transcript" in [event["type"] for event in self.tick()]

    @rule()
    def reset(self) -> None:
        self.socket.send(json.dumps({"type": "reset"}))
        first = self.socket.recv(timeout=WITHIN_S) if not self.has_sound else None
        if first is None:
            assert "reset" in [event["type"] for event in self.tick()]
            self.is_answering = False
        else:
            assert json.loads(first)["type"] == "reset"

    @invariant()
    def sound_has_begun(self) -> None:
        """From here on a reset is the engine's."""
        if not self.has_sound:
            self.tick()
            self.has_sound = True


@pytest.mark.parametrize("machine", [RealtimeMachine, Pcm16Machine])
@pytest.mark.parametrize("count", [20, pytest.param(300, marks=pytest.mark.long)])
def test_every_order_of_steps_is_answered(served_turns: Served, machine: type[RuleBasedStateMachine], count: int):
    machine.served = served_turns
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=count,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
    go_on(served_turns)
