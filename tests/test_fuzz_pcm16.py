"""/ws/pcm16 as a state machine that hypothesis drives: each answer is one that the state allows."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from websockets.sync.client import connect

from tests.conftest import Served
from tests.test_fuzz import SHORT, expect_error, go_on

WORDS = st.sampled_from(["a latte", "말해 줘", "🙂", "x" * 200])
WITHIN_S = 30


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
        """Send a tick of silence and return the events of its answer."""
        self.socket.send(bytes(10_240))
        return self.hear()

    def hear(self) -> list[dict[str, Any]]:
        """Return the events up to the next audio."""
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
        """Send the first tick: the engine confirms later resets."""
        if not self.has_sound:
            self.tick()
            self.has_sound = True


def test_random_order_of_steps_is_answered(served_turns: Served):
    Pcm16Machine.served = served_turns
    run_state_machine_as_test(
        Pcm16Machine,
        settings=settings(
            max_examples=10,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
    go_on(served_turns)
