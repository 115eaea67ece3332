"""One response: its state, its output items, and its events in the protocol's order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from config.settings import CODE2WAV_DELAY, OUTPUT_HZ
from contract.events import AnswerDone, Interrupted
from frontend.audio.pcm import SAMPLE_BYTES
from frontend.realtime.events import Event, new_id
from frontend.realtime.items import Item, Placement
from frontend.realtime.output_message import AUDIO, OutputMessage
from frontend.realtime.requests import ResponseRequest
from frontend.realtime.response_state import ResponseState, transition
from frontend.realtime.session import Session
from frontend.realtime.usage import NO_USAGE, usage_event

COMPLETED, INCOMPLETE, CANCELLED, FAILED = "completed", "incomplete", "cancelled", "failed"
IN_PROGRESS = (ResponseState.REQUESTED, ResponseState.STREAMING, ResponseState.CANCELLING)
BY_CLIENT, BY_TURN = "client_cancelled", "turn_detected"
Play = Callable[[str, bytes, bool], None]


@dataclass(frozen=True)
class Outcome:
    """The status of a response that has ended, and its reason."""

    status: str
    details: Event


class Response:
    """Methods return the events that follow; input that the state has no use for has none."""

    def __init__(
        self,
        request: ResponseRequest,
        session: Session,
        conversation_id: str,
        play: Play | None = None,
        event_id: str | None = None,
    ):
        """Create a response that waits; `play` takes the audio of a call; `event_id`: id of the client's event."""
        self.id = new_id("resp")
        self.request = request
        self.event_id = event_id
        self.state = ResponseState.QUEUED
        self.options = session.answer_options(request.output_modalities, request.max_output_tokens)
        self.output: list[OutputMessage] = []
        self._play = play
        self._is_muted = False  # a call plays nothing more of a cancelled response
        output = dict(session.about["audio"]["output"])
        if request.audio.output.format and not play:
            output["format"] = request.audio.output.format.about
        self._format = output["format"]["type"]
        self._skip = CODE2WAV_DELAY * SAMPLE_BYTES  # bytes of code2wav's delay before the answer's audio
        self._received = 0  # bytes of the answer's audio
        self._length: int | None = None  # bytes of the whole answer; None: the engine has not ended it
        self._outcome = Outcome(COMPLETED, {})
        self._usage = NO_USAGE
        self._about: Event = {
            "object": "realtime.response",
            "id": self.id,
            "status": "in_progress",
            "status_details": None,
            "output": [],
            "conversation_id": None if request.is_out_of_band else conversation_id,
            "output_modalities": [self.options.modality],
            "max_output_tokens": self.options.max_output_tokens,
            "audio": {"output": {"format": output["format"], "voice": output["voice"]}},
            "usage": None,
            "metadata": request.metadata,
        }

    @property
    def is_in_progress(self) -> bool:
        """True while the engine is to begin or to end the answer."""
        return self.state in IN_PROGRESS

    @property
    def has_begun(self) -> bool:
        """True if the engine has begun the answer."""
        return bool(self.output)

    @property
    def item(self) -> Item | None:
        """The item that the engine's answer streams to."""
        return self.output[-1].item if self.output else None

    def created(self) -> list[Event]:
        """Return the event that announces the response."""
        return [{"type": "response.created", "response": dict(self._about)}]

    def move(self, to: ResponseState) -> None:
        """Change the state. Raises `IllegalTransitionError`."""
        self.state = transition(self.state, to)
        self._is_muted |= to is ResponseState.CANCELLING

    def begin(self, turn: int, previous_item_id: str | None) -> list[Event]:
        """Start an output item: the engine has begun to answer the turn."""
        if self.state is not ResponseState.CANCELLING:
            self.move(ResponseState.STREAMING)
        item = Item(new_id("item"), "assistant", [], "in_progress", turn=turn, placement=Placement.HELD)
        item.is_spoken = self.options.modality == AUDIO
        is_in_conversation = not self.request.is_out_of_band
        message = OutputMessage(
            self.id, len(self.output), item, self.options.modality, self._format, previous_item_id, is_in_conversation
        )
        self.output.append(message)
        return message.added()

    def add_text(self, delta: str) -> list[Event]:
        """Append text of the answer."""
        return self.output[-1].add_text(delta) if self.is_in_progress and self.output else []

    def add_audio(self, pcm: bytes) -> list[Event]:
        """Append a tick's audio; after the last of an ended answer the response is done."""
        if not self.output or self.state is ResponseState.DONE:
            return []
        skipped = min(self._skip, len(pcm))
        self._skip -= skipped
        pcm = pcm[skipped:]
        if self._length is not None:
            pcm = pcm[: self._length - self._received]
        self._received += len(pcm)
        is_last = self._received == self._length
        events: list[Event] = []
        if self.options.modality == AUDIO:
            if self._play:
                self._play(self.id, b"" if self._is_muted else pcm, is_last)
            else:
                events = self.output[-1].add_audio(pcm, is_last)
        return [*events, *self._end()] if is_last else events

    def answer_done(self, event: AnswerDone) -> None:
        """Drain: the engine has ended the answer; its last audio comes with this tick or the next."""
        self.move(ResponseState.DRAINING)
        self._length = max(self._received, event.spoken_ms * OUTPUT_HZ // 1000 * SAMPLE_BYTES)
        self._usage = event.usage or NO_USAGE
        if event.reason != "end":
            self._outcome = Outcome(INCOMPLETE, {"reason": "max_output_tokens"})

    def interrupted(self, event: Interrupted) -> list[Event]:
        """End the response where the engine has ended the answer; the item keeps what was heard."""
        if self.item:
            self.item.keep(event.heard_text)
        self._usage = event.usage or NO_USAGE
        return self.cancelled(BY_TURN if event.by == "speech" else BY_CLIENT)

    def cancelled(self, reason: str = BY_CLIENT) -> list[Event]:
        """End the response as cancelled."""
        return self._end(Outcome(CANCELLED, {"reason": reason}))

    def fail(self, code: str, message: str) -> list[Event]:
        """End the response as failed."""
        return self._end(Outcome(FAILED, {"error": {"type": "server_error", "code": code, "message": message}}))

    def _end(self, outcome: Outcome | None = None) -> list[Event]:
        """Return the remaining events."""
        outcome = outcome or self._outcome
        self.move(ResponseState.DONE)
        events = [event for message in self.output for event in message.done(outcome.status == COMPLETED)]
        self._about["output"] = [message.item.about() for message in self.output]
        self._about["status"] = outcome.status
        self._about["status_details"] = {"type": outcome.status, **outcome.details}
        self._about["usage"] = usage_event(self._usage)
        return [*events, {"type": "response.done", "response": dict(self._about)}]
