"""Books of a client of the Realtime protocol: requests, items, responses. The first broken promise raises."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from typing import Any

Event = dict[str, Any]
STEPS = {  # events of one response as letters, so that a regular expression can check their order
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
REPLIES = {  # to events whose effect is immediate
    "session.update": ["session.updated"],
    "input_audio_buffer.clear": ["input_audio_buffer.cleared"],
    "conversation.item.create": ["conversation.item.added", "conversation.item.done"],
    "conversation.item.retrieve": ["conversation.item.retrieved"],
}
LADDERS = {"audio": "c(iIp[ta]*ATPoO)?d", "text": "c(iIpt*TPoO)?d"}


@dataclass
class ReceivedResponse:
    """One response as its events describe it."""

    created: Event
    is_requested: bool = False  # True if a `response.create` has requested it
    precedes_commit: bool = False  # announced before a commit that was requested earlier
    steps: str = ""
    item_id: str | None = None
    text: str = ""
    audio: bytes = b""
    done: Event | None = None

    @property
    def modality(self) -> str:
        return str(self.created["output_modalities"][0])

    @property
    def is_out_of_band(self) -> bool:
        return self.created["conversation_id"] is None

    def take(self, event: Event) -> None:
        self.steps += STEPS[event["type"]]
        if event["type"] == "response.output_item.added":
            self.item_id = event["item"]["id"]
        elif self.steps[-1] == "t":
            self.text += event["delta"]
        elif self.steps[-1] == "a":
            data = base64.b64decode(event["delta"], validate=True)
            assert data
            self.audio += data
        elif event["type"] == "response.done":
            self._finish(event["response"])

    def _finish(self, done: Event) -> None:
        """Assert that the events are complete and in order, and that `response.done` repeats what was streamed."""
        self.done = done
        assert not (self.precedes_commit and self.item_id), "the response was announced before its commit"
        ladder = LADDERS[self.modality]
        if self.is_out_of_band:  # an out-of-band item does not belong to the conversation
            ladder = re.sub("[IO]", "", ladder)
        assert re.fullmatch(ladder, self.steps), self.steps
        assert done["status"] in ("completed", "incomplete", "cancelled", "failed")
        assert done["status_details"]["type"] == done["status"]
        assert done["metadata"] == self.created["metadata"]
        assert done["usage"]["total_tokens"] == done["usage"]["input_tokens"] + done["usage"]["output_tokens"]
        assert [item["id"] for item in done["output"]] == ([self.item_id] if self.item_id else [])
        for item in done["output"]:
            (part,) = item["content"]
            text = part["text" if self.modality == "text" else "transcript"]
            is_whole = done["status"] in ("completed", "incomplete", "failed")
            assert text == self.text if is_whole else self.text.startswith(text)
            assert item["status"] == ("completed" if done["status"] == "completed" else "incomplete")


@dataclass
class Ledger:
    """Pending requests, items and responses of one client."""

    items: dict[str, Event] = field(default_factory=dict)  # items by id, in the order of the conversation
    responses: dict[str, ReceivedResponse] = field(
        default_factory=dict
    )  # responses by id, in the order of their creation
    requests: dict[str, tuple[str, Event]] = field(default_factory=dict)  # type and fields by the id of the event
    pending_responses: dict[str, Event] = field(default_factory=dict)  # requests by the id of their event
    pending_commits: list[str] = field(default_factory=list)  # ids of events
    pending_deletions: set[str] = field(default_factory=set)  # ids of items
    pending_truncations: list[tuple[str, int]] = field(default_factory=list)  # ids of items, and milliseconds
    refused: set[str] = field(default_factory=set)  # ids of events that an error names
    errors: list[Event] = field(default_factory=list)
    item_ids: set[str] = field(default_factory=set)  # ids that the server has chosen
    spoken: set[str] = field(default_factory=set)  # ids of items that the server has spoken
    user_speaks: bool = False
    _speech_item: str | None = None  # id that `speech_started` announced

    @property
    def open(self) -> list[ReceivedResponse]:
        """Responses without `response.done`."""
        return [response for response in self.responses.values() if response.done is None]

    @property
    def current(self) -> ReceivedResponse | None:
        """The open response of the conversation."""
        return next((response for response in self.open if not response.is_out_of_band), None)

    @property
    def is_settled(self) -> bool:
        """True if every request has had its answer."""
        return not (
            self.open
            or self.pending_responses
            or self.pending_commits
            or self.pending_deletions
            or self.pending_truncations
        )

    def request(self, event_id: str, kind: str, fields: Event) -> None:
        """Note the client's next event."""
        self.requests[event_id] = kind, fields
        match kind:
            case "response.create":
                self.pending_responses[event_id] = fields.get("response", {})
            case "input_audio_buffer.commit":
                self.pending_commits.append(event_id)
            case "conversation.item.delete":
                self.pending_deletions.add(fields["item_id"])
            case "conversation.item.truncate":
                self.pending_truncations.append((fields["item_id"], fields["audio_end_ms"]))

    def expect_reply(self, event_id: str, events: list[Event]) -> None:
        """Assert that the events after a request contain its reply, if its effect is immediate."""
        kinds = [event["type"] for event in events]
        replies = REPLIES.get(self.requests[event_id][0], [])
        if event_id in self.refused:
            replies = ["error"]
        assert [kind for kind in kinds if kind in replies] == replies

    def take(self, event: Event) -> None:
        """Note the server's next event. Raises `AssertionError` if it breaks a promise."""
        match event["type"]:
            case "error":
                self._take_error(event["error"])
            case "response.created":
                self._create_response(event["response"])
            case "conversation.item.added":
                self._add_item(event)
            case "conversation.item.deleted":
                del self.items[event["item_id"]]
                self.pending_deletions.discard(event["item_id"])
            case "conversation.item.truncated":
                self._truncate(event)
            case "input_audio_buffer.speech_started":
                assert not self.user_speaks
                self.user_speaks, self._speech_item = True, event["item_id"]
            case "input_audio_buffer.speech_stopped":
                assert self.user_speaks
                assert self._speech_item in (None, event["item_id"])
                self.user_speaks = False
            case "input_audio_buffer.committed":
                assert self._speech_item in (None, event["item_id"])
                self._speech_item = None
                del self.pending_commits[:1]  # or a turn that the server detected
        self._climb(event)

    def _take_error(self, error: Event) -> None:
        """Assert that an error names an event of the client at most once, and none that was carried out."""
        self.errors.append(error)
        event_id = error["event_id"]
        if event_id is None:
            return
        assert event_id not in self.refused, f"two errors name {event_id}"
        self.refused.add(event_id)
        created = [response.created["metadata"] or {} for response in self.responses.values()]
        assert event_id not in [metadata.get("name") for metadata in created], f"{event_id} was carried out"
        self.pending_responses.pop(event_id, None)
        if event_id in self.pending_commits:
            self.pending_commits.remove(event_id)
        kind, fields = self.requests.get(event_id, ("", {}))
        if kind == "conversation.item.delete" and fields["item_id"] not in self.items:
            self.pending_deletions.discard(fields["item_id"])
        elif kind == "conversation.item.truncate":
            self.pending_truncations.remove((fields["item_id"], fields["audio_end_ms"]))

    def _create_response(self, response: Event) -> None:
        assert response["id"] not in self.responses
        assert response["status"] == "in_progress"
        is_out_of_band = response["conversation_id"] is None
        assert is_out_of_band or self.current is None, "two responses are open"
        self.responses[response["id"]] = received = ReceivedResponse(response)
        name = (response["metadata"] or {}).get("name")
        if name is None and not is_out_of_band:  # requested without a name, or by the end of the user's turn
            unnamed = (key for key, wanted in self.pending_responses.items() if not wanted.get("metadata"))
            name = next(unnamed, None)
        if name is not None:
            assert name not in self.refused
            earlier = list(self.requests)[: list(self.requests).index(name)] if not is_out_of_band else []
            received.precedes_commit = bool(set(earlier) & set(self.pending_commits))
            wanted = self.pending_responses.pop(name)
            received.is_requested = True
            assert response["output_modalities"] == wanted.get("output_modalities", response["output_modalities"])

    def _add_item(self, event: Event) -> None:
        item = event["item"]
        assert item["id"] not in self.items
        assert item["id"] not in self.item_ids
        assert event["previous_item_id"] == next(reversed(self.items), None)
        if item["id"].startswith("item_"):  # a client may use its own id again
            self.item_ids.add(item["id"])
        self.items[item["id"]] = item

    def _truncate(self, event: Event) -> None:
        truncation = event["item_id"], event["audio_end_ms"]
        if truncation in self.pending_truncations:  # a call's own are not requested
            self.pending_truncations.remove(truncation)

    def _climb(self, event: Event) -> None:
        """Add an event of a response to that response."""
        if event["type"] not in STEPS:
            return
        if event["type"].startswith("conversation.item."):
            item_id = event["item"]["id"]
            response = next((response for response in self.open if response.item_id == item_id), None)
            if response is None:  # an item of the user's
                return
        else:
            response_id = event["response"]["id"] if "response" in event else event["response_id"]
            response = self.responses[response_id]
        assert response.done is None, f"{event['type']} after response.done"
        response.take(event)
        if response.item_id and not response.is_out_of_band and response.modality == "audio":
            self.spoken.add(response.item_id)
