"""/v1/realtime as a state machine that hypothesis drives: each client event is answered, each response ends once."""

from __future__ import annotations

import base64
import copy
import json
import re
import time
import urllib.request
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import soxr
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from websockets.sync.client import connect

from tests.conftest import Served
from tests.sound import SENTENCE, synthesize
from tests.test_bridge import wait_until_empty
from tests.test_fuzz import expect_error, go_on

WITHIN_S = 30
CANCEL_AGAIN_S = 1.0
MALFORMED = ("invalid_json", "invalid_event", "unknown_event_type")
EMPTY_COMMIT = "input_audio_buffer_commit_empty"
STEPS = {  # events of one response as letters, so that a regular expression can tell their order
    "response.created": "c",
    "response.output_item.added": "i",
    "conversation.item.added": "I",
    "response.content_part.added": "p",
    "response.output_audio_transcript.delta": "t",
    "response.output_text.delta": "t",
    "response.output_audio.delta": "a",
    "response.output_audio.done": "A",
    "response.output_audio_transcript.done": "T",
    "response.output_text.done": "T",
    "response.content_part.done": "P",
    "response.output_item.done": "o",
    "conversation.item.done": "O",
    "response.done": "d",
}
LADDERS = {"audio": "c(iIp[ta]*ATPoO)?d", "text": "c(iIpt*TPoO)?d"}

OWN_IDS = ["a", "b", "c"]
WHICH_ITEM = st.one_of(st.sampled_from([*OWN_IDS, "nobody", ""]), st.integers(0, 3))  # a number: from the end
DETECTION = st.one_of(
    st.none(),
    st.fixed_dictionaries(
        {"type": st.just("server_vad")},
        optional={
            "threshold": st.sampled_from([0.01, 0.5, 0.9]),
            "silence_duration_ms": st.sampled_from([0, 100, 600]),
            "prefix_padding_ms": st.sampled_from([0, 300]),
            "create_response": st.booleans(),
            "interrupt_response": st.booleans(),
        },
    ),
)
FORMAT = st.sampled_from([{"type": "audio/pcm", "rate": 24_000}, {"type": "audio/pcmu"}, {"type": "audio/pcma"}])
CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "turn_detection": DETECTION,
        "input_format": FORMAT,
        "output_format": FORMAT,
        "output_modalities": st.sampled_from([["audio"], ["text"]]),
        "instructions": st.sampled_from(["", "Be brief.", "짧게 말해 줘."]),
        "max_output_tokens": st.sampled_from([1, 4, 16]),
    },
)
BAD_SESSIONS = st.sampled_from(
    [
        {"type": "transcription"},
        {"output_modalities": []},
        {"instructions": 5},
        {"max_output_tokens": 0},
        {"audio": []},
        {"audio": {"input": {"turn_detection": {"type": "x"}}}},
        {"audio": {"input": {"turn_detection": {"type": "server_vad", "threshold": 2}}}},
        {"audio": {"output": {"format": {"type": "audio/pcm", "rate": 48_000}}}},
    ]
)
TEXTS = st.sampled_from(["a latte", "말해 줘", "🙂", "x" * 200])
GOOD_REQUESTS = st.fixed_dictionaries(
    {},
    optional={
        "instructions": st.sampled_from(["", "Answer in one word."]),
        "output_modalities": st.sampled_from([["audio"], ["text"]]),
        "conversation": st.just("auto"),
    },
)
BAD_REQUESTS = st.sampled_from(
    [
        {"conversation": "other"},
        {"input": [{}]},
        {"output_modalities": ["video"]},
        {"metadata": {"x": 5}},
        {"instructions": []},
    ]
)
MALFORMED_FRAMES = st.sampled_from(
    ['{"type": ', "[]", "null", '{"type": NaN}', "{}", '{"type": 5}', b"\0\1", "[" * 300],
)
SOUNDS = st.sampled_from(["silence", "speech", "odd", "nothing"])
BAD_SOUNDS = st.sampled_from([None, 5, "?", "AAA", "é"])


def base64_of(sound: bytes) -> str:
    return base64.b64encode(sound).decode()


@dataclass
class Given:
    """One response, as its events tell it."""

    about: dict[str, Any]
    steps: str = ""
    item_id: str | None = None
    text: str = ""

    @property
    def modality(self) -> str:
        return str(self.about["output_modalities"][0])

    def take(self, event: dict[str, Any]) -> None:
        self.steps += STEPS[event["type"]]
        if event["type"] == "response.output_item.added":
            self.item_id = event["item"]["id"]
        elif self.steps[-1] == "t":
            self.text += event["delta"]
        elif self.steps[-1] == "a":
            assert base64.b64decode(event["delta"], validate=True)

    def expect_done(self, done: dict[str, Any]) -> None:
        """The ladder is whole; the last event tells of the same response, its item and its words."""
        ladder = LADDERS[self.modality]
        if self.about["conversation_id"] is None:  # its item is none of the conversation's
            ladder = re.sub("[IO]", "", ladder)
        assert re.fullmatch(ladder, self.steps), self.steps
        assert done["status"] in ("completed", "incomplete", "cancelled"), done["status_details"]
        assert done["status_details"]["type"] == done["status"]
        assert done["metadata"] == self.about["metadata"]
        assert [item["id"] for item in done["output"]] == ([self.item_id] if self.item_id else [])
        for item in done["output"]:
            (part,) = item["content"]
            assert self.text.startswith(part["text" if self.modality == "text" else "transcript"])
            assert item["status"] == ("completed" if done["status"] == "completed" else "incomplete")


@dataclass
class Ledger:
    """What the server has told so far, and what it still owes."""

    items: dict[str, str] = field(default_factory=dict)  # ids in the order of the conversation, and their roles
    given: Given | None = None  # the response that is open
    out_of_band: dict[str, Given] = field(default_factory=dict)  # those that are open, by id
    ended: set[str] = field(default_factory=set)  # ids of responses
    due_responses: dict[str, dict[str, Any]] = field(default_factory=dict)  # what was asked, by the event's id
    due_commits: list[str] = field(default_factory=list)  # ids of events
    seen: set[str] = field(default_factory=set)  # ids of the server's events
    spoken: set[str] = field(default_factory=set)  # ids of items that the server has spoken

    @property
    def owes(self) -> bool:
        return bool(self.given or self.out_of_band or self.due_responses or self.due_commits)

    def take(self, event: dict[str, Any]) -> None:
        """The next event of the server; fails where it has no place."""
        assert event["event_id"] not in self.seen
        self.seen.add(event["event_id"])
        match event["type"]:
            case "error":
                self._take_error(event)
            case "response.created":
                self._begin(event["response"])
            case "conversation.item.added":
                assert event["previous_item_id"] == next(reversed(self.items), None)
                self.items[event["item"]["id"]] = event["item"]["role"]
            case "conversation.item.deleted":
                del self.items[event["item_id"]]
            case "input_audio_buffer.committed":
                del self.due_commits[:1]  # or detected by the server
        self._climb(event)

    def _take_error(self, event: dict[str, Any]) -> None:
        expect_error(event)
        error = event["error"]
        assert error["type"] == "invalid_request_error", error
        self.due_responses.pop(error["event_id"], None)
        if error["event_id"] in self.due_commits:
            self.due_commits.remove(error["event_id"])

    def _begin(self, response: dict[str, Any]) -> None:
        assert response["id"] not in self.ended
        assert response["status"] == "in_progress"
        if response["conversation_id"] is None:
            self.out_of_band[response["id"]] = Given(response)
            return
        assert self.given is None, "one response at a time"
        self.given = Given(response)
        name = (response["metadata"] or {}).get("name")
        if name is None:  # asked for without a name, or by the end of the user's turn
            name = next((name for name, asked in self.due_responses.items() if not asked.get("metadata")), "")
        asked = self.due_responses.pop(name, {})
        assert response["output_modalities"] == asked.get("output_modalities", response["output_modalities"])

    def _climb(self, event: dict[str, Any]) -> None:
        """Puts an event of a response into its ladder."""
        response_id = event["response"]["id"] if "response" in event else event.get("response_id")
        given = self.out_of_band.get(response_id, self.given)
        about_item = event["type"].startswith("conversation.item.")
        if event["type"] not in STEPS or (about_item and (not given or event["item"]["id"] != given.item_id)):
            return
        assert given, f"{event['type']} outside a response"
        about = event.get("response", {"id": event.get("response_id", given.about["id"])})
        assert about["id"] == given.about["id"]
        given.take(event)
        if given is self.given and given.item_id and given.modality == "audio":
            self.spoken.add(given.item_id)
        if event["type"] == "response.done":
            given.expect_done(about)
            self.ended.add(about["id"])
            if not self.out_of_band.pop(about["id"], None):
                self.given = None


class RealtimeMachine(RuleBasedStateMachine):
    """A client of /v1/realtime. After each event it asks something whose answer tells that the event was dealt with.

    What the server does in its own time (commits, responses) is noted as it comes, and waited for at the end.
    """

    served: Served
    speech: bytes  # PCM16 at 24 kHz

    def __init__(self) -> None:
        super().__init__()
        self.ledger, self.said = Ledger(), 0
        self.socket = connect(self.served.websocket.replace("/ws/pcm16", "/v1/realtime"), max_size=None)
        created = self.hear()
        assert created["type"] == "session.created"
        self.session = created["session"]
        self.default_detection = self.session["audio"]["input"]["turn_detection"]
        self.change({"max_output_tokens": 4})

    def teardown(self) -> None:
        with self.socket:
            self.settle()
            for item_id in [*self.ledger.items, *OWN_IDS]:
                self.retrieve(item_id)
        assert self.socket.close_code == 1000
        wait_until_free(self.served)

    # What is said and heard

    def say(self, kind: str, **fields: Any) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
        """Sends an event; returns what was told until it was dealt with, and the error that names it."""
        return self.say_frame(json.dumps({"type": kind, "event_id": self.next_id(), **fields}))

    def next_id(self) -> str:
        self.said += 1
        return f"event {self.said}"

    def say_frame(self, frame: str | bytes) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
        name, probe = f"event {self.said}", f"after event {self.said}"
        self.socket.send(frame)
        self.socket.send(json.dumps({"type": "probe", "event_id": probe}))
        events: list[dict[str, Any]] = []
        while not (events and about(events[-1]) == probe):
            events.append(self.hear())
        errors = [event["error"] for event in events if about(event) == name]
        assert len(errors) < 2
        return events[:-1], errors[0] if errors else None

    def hear(self, within_s: float = WITHIN_S) -> dict[str, Any]:
        """The server's next event."""
        event: dict[str, Any] = json.loads(self.socket.recv(timeout=within_s))
        self.ledger.take(event)
        return event

    def settle(self) -> None:
        """Waits for all that the server owes; responses are cancelled, whose speech has no end."""
        deadline, cancelled_s = time.monotonic() + WITHIN_S, 0.0
        while self.ledger.owes:
            assert time.monotonic() < deadline, f"owed after {WITHIN_S} s: {self.ledger}"
            if (self.ledger.given or self.ledger.out_of_band) and time.monotonic() - cancelled_s > CANCEL_AGAIN_S:
                cancelled_s = time.monotonic()
                self.say("response.cancel")
                for response_id in list(self.ledger.out_of_band):
                    self.say("response.cancel", response_id=response_id)
            self.wait(0.1)

    def expect_in_time(self, kind: str, code: str | None, answer: tuple[list[dict[str, Any]], Any]) -> dict[str, Any]:
        """As `expect`, of what the engine does first."""
        events, error = answer
        while not code and not error and not any(event["type"] == kind for event in events):
            events = [*events, self.hear()]
        return self.expect(kind, code, (events, error))

    def expect(self, kind: str, code: str | None, answer: tuple[list[dict[str, Any]], Any]) -> dict[str, Any]:
        """One event of this kind, or where there is a code the error with it."""
        events, error = answer
        found = [event for event in events if event["type"] == kind]
        if code:
            assert error
            assert error["code"] == code
            return dict(error)
        assert error is None
        assert len(found) == 1
        return found[0]

    def item_id(self, which: str | int) -> str:
        """An item's id: itself, or by its place from the end."""
        if isinstance(which, str):
            return which
        return [*["nobody"] * 4, *self.ledger.items][-1 - which]

    def sound(self, kind: str) -> bytes:
        return {"silence": bytes(9600), "speech": self.speech, "odd": self.speech[:4801], "nothing": b""}[kind]

    # Sound

    @rule(kind=SOUNDS)
    def append(self, kind: str) -> None:
        _, error = self.say("input_audio_buffer.append", audio=base64_of(self.sound(kind)))
        assert error is None

    @rule(audio=BAD_SOUNDS)
    def append_badly(self, audio: Any) -> None:
        self.expect("", "invalid_value", self.say("input_audio_buffer.append", audio=audio))

    @rule()
    def commit(self) -> None:
        name = f"event {self.said + 1}"
        self.ledger.due_commits.append(name)
        _, error = self.say("input_audio_buffer.commit")
        assert error is None or error["code"] == EMPTY_COMMIT

    @rule()
    def clear(self) -> None:
        self.expect("input_audio_buffer.cleared", None, self.say("input_audio_buffer.clear"))

    @rule(seconds=st.sampled_from([0.05, 0.4, 1.0]))
    def wait(self, seconds: float) -> None:
        until_s = time.monotonic() + seconds
        while (left_s := until_s - time.monotonic()) > 0:
            try:
                self.hear(left_s)
            except TimeoutError:
                return

    # Items

    def create(self, code: str | None, item: dict[str, Any], **fields: Any) -> None:
        if item.get("id") in self.ledger.items:
            code = "item_create_duplicate_item_id"
        answer = self.say("conversation.item.create", item={"type": "message", **item}, **fields)
        if code:
            self.expect("", code, answer)
            return
        events, error = answer
        assert error is None
        kinds = [event["type"] for event in events if event.get("item", {}).get("id") == item["id"]]
        assert kinds == ["conversation.item.added", "conversation.item.done"]
        assert self.ledger.items[item["id"]] == item["role"]

    @rule(item_id=st.sampled_from(OWN_IDS), role=st.sampled_from(["user", "assistant", "system"]), text=TEXTS)
    def create_text(self, item_id: str, role: str, text: str) -> None:
        self.create(None, {"id": item_id, "role": role, "content": [{"type": "input_text", "text": text}]})

    @rule(item_id=st.sampled_from(OWN_IDS), kind=st.sampled_from(["speech", "odd", "nothing"]), text=st.booleans())
    def create_sound(self, item_id: str, kind: str, text: bool) -> None:
        content = [{"type": "input_audio", "audio": base64_of(self.sound(kind)[:961])}]
        content += [{"type": "input_text", "text": "Hello."}] if text else []
        self.create(None, {"id": item_id, "role": "user", "content": content})

    @rule(
        item=st.sampled_from(
            [
                {"role": "user", "content": []},
                {"role": "user", "content": [{"type": "input_audio", "audio": "?"}]},
                {"role": "system", "content": [{"type": "input_audio", "audio": ""}]},
                {"role": "x", "content": [{"type": "input_text", "text": "Hello."}]},
                {"role": "user", "content": [{"type": "input_text", "text": "\0"}]},
                {"role": "user", "content": "Hello.", "type": "message"},
                {"role": "user", "content": [], "type": "function_call"},
            ]
        )
    )
    def create_badly(self, item: dict[str, Any]) -> None:
        self.create("invalid_value", item)

    @rule(previous=st.sampled_from(["root", "nobody", 5]))
    def create_elsewhere(self, previous: Any) -> None:
        """At the end alone; the root is the end of what is empty."""
        item = {"role": "user", "content": [{"type": "input_text", "text": "Hello."}]}
        answer = self.say("conversation.item.create", item={"type": "message", **item}, previous_item_id=previous)
        events, error = answer
        assert error is None or error["code"] == "item_create_invalid_previous_item_id"
        assert error or (previous == "root" and None in [event.get("previous_item_id", "") for event in events])

    @rule(which=WHICH_ITEM)
    def retrieve(self, which: str | int) -> None:
        item_id = self.item_id(which)
        code = None if item_id in self.ledger.items else "item_retrieve_invalid_item_id"
        found = self.expect(
            "conversation.item.retrieved", code, self.say("conversation.item.retrieve", item_id=item_id)
        )
        assert code or (found["item"]["id"], found["item"]["role"]) == (item_id, self.ledger.items[item_id])

    @rule(which=WHICH_ITEM)
    def delete(self, which: str | int) -> None:
        item_id = self.item_id(which)
        code = None if item_id in self.ledger.items else "item_delete_invalid_item_id"
        answer = self.say("conversation.item.delete", item_id=item_id)
        found = self.expect_in_time("conversation.item.deleted", code, answer)
        assert code or found["item_id"] == item_id

    @rule(which=WHICH_ITEM, index=st.sampled_from([0, 0, 1, -1]), end_ms=st.sampled_from([0, 300, 10**6, -1, "x"]))
    def truncate(self, which: str | int, index: int, end_ms: Any) -> None:
        item_id = self.item_id(which)
        code = None if item_id in self.ledger.items else "item_truncate_invalid_item_id"
        if not code and (item_id not in self.ledger.spoken or index or end_ms in (-1, "x")):
            code = "invalid_value"
        answer = self.say("conversation.item.truncate", item_id=item_id, content_index=index, audio_end_ms=end_ms)
        found = self.expect_in_time("conversation.item.truncated", code, answer)
        assert code or (found["item_id"], found["audio_end_ms"]) == (item_id, end_ms)

    # Responses

    @rule(request=GOOD_REQUESTS, is_named=st.booleans())
    def respond(self, request: dict[str, Any], is_named: bool) -> None:
        name = f"event {self.said + 1}"
        wanted = {**request, "metadata": {"name": name}} if is_named else request
        self.ledger.due_responses[name] = wanted
        _, error = self.say("response.create", response=wanted)
        assert error is None or error["code"] == "conversation_already_has_active_response"

    @rule(request=GOOD_REQUESTS)
    def respond_out_of_band(self, request: dict[str, Any]) -> None:
        before = len(self.ledger.out_of_band)
        answer = self.say("response.create", response={**request, "conversation": "none"})
        if answer[1]:
            assert answer[1]["code"] == "conversation_already_has_active_response"
            assert before > 8, "the one that is given and those that wait"
        else:
            assert any(event["type"] == "response.created" for event in answer[0])

    @rule()
    def cancel_out_of_band(self) -> None:
        for response_id in list(self.ledger.out_of_band)[-1:]:
            _, error = self.say("response.cancel", response_id=response_id)
            assert error is None or response_id in self.ledger.ended or self.ledger.out_of_band[response_id].steps

    @rule(request=BAD_REQUESTS)
    def respond_badly(self, request: dict[str, Any]) -> None:
        """Refused at once, whatever is going on."""
        self.expect("", "invalid_value", self.say("response.create", response=request))

    @rule(which=st.sampled_from(["any", "open", "nobody"]))
    def cancel(self, which: str) -> None:
        given, ended = self.ledger.given, len(self.ledger.ended)
        response_id = given.about["id"] if given and which == "open" else None if which != "nobody" else "nobody"
        _, error = self.say("response.cancel", **({"response_id": response_id} if response_id else {}))
        assert error is None or error["code"] == "response_cancel_not_active"
        assert error or which != "nobody"
        assert error or self.ledger.given or len(self.ledger.ended) > ended

    # The session, and what is no event

    @rule(changes=CHANGES)
    def change(self, changes: dict[str, Any]) -> None:
        asked, expected = {"type": "realtime", "audio": {"input": {}, "output": {}}}, copy.deepcopy(self.session)
        for name, value in changes.items():
            side, _, part = name.partition("_")
            if name == "turn_detection":
                asked["audio"]["input"][name] = value
                before = expected["audio"]["input"][name] or self.default_detection
                expected["audio"]["input"][name] = None if value is None else {**before, **value}
            elif part == "format":
                asked["audio"][side][part] = expected["audio"][side][part] = value
            else:
                asked[name] = expected[name] = value
        updated = self.expect("session.updated", None, self.say("session.update", session=asked))
        assert updated["session"] == expected
        self.session = expected

    @rule(session=BAD_SESSIONS)
    def change_badly(self, session: dict[str, Any]) -> None:
        self.expect("", "invalid_value", self.say("session.update", session=session))

    @rule(frame=MALFORMED_FRAMES)
    def send_malformed(self, frame: str | bytes) -> None:
        self.next_id()
        events, _ = self.say_frame(frame)
        codes = [event["error"]["code"] for event in events if event["type"] == "error"]
        assert len([code for code in codes if code in MALFORMED]) == 1

    @rule(kind=st.sampled_from(["unheard.of", "", "output_audio_buffer.clear"]))
    def send_unknown(self, kind: str) -> None:
        code = "invalid_event" if kind == "output_audio_buffer.clear" else "unknown_event_type"
        self.expect("", code, self.say(kind))


def about(event: dict[str, Any]) -> str | None:
    """The client's event that an error names."""
    return event["error"]["event_id"] if event["type"] == "error" else None


def wait_until_free(served: Served) -> None:
    """No conversation is left, neither in the bridge nor in the engine."""
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


@pytest.mark.parametrize("count", [10, pytest.param(200, marks=pytest.mark.long)])
def test_every_order_of_events_is_answered(served_turns: Served, count: int):
    RealtimeMachine.served = served_turns
    spoken = soxr.resample(synthesize(SENTENCE, "en")[:16_000], 16_000, 24_000)
    RealtimeMachine.speech = spoken.astype(np.int16).tobytes()
    wait_until_free(served_turns)
    run_state_machine_as_test(
        RealtimeMachine,
        settings=settings(
            max_examples=count,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
    go_on(served_turns)
