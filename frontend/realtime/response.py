"""One response: its events in the protocol's order, whatever ends it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from config.loader import shown
from config.settings import CODE2WAV_DELAY, OUTPUT_HZ
from frontend.audio.formats import AudioEncoder
from frontend.audio.pcm import SAMPLE_BYTES
from frontend.realtime import session as sessions
from frontend.realtime.events import Event, RealtimeError, new_id
from frontend.realtime.items import Item

CONVERSATIONS = ("auto", "none")
MAX_METADATA, MAX_NAME, MAX_VALUE = 16, 64, 512  # texts, and characters of each and of its name


class State(Enum):
    """How far a response has come."""

    CREATED = "created"  # the client knows of it, the engine has not begun
    SPEAKING = "speaking"
    FINISHING = "finishing"  # the engine has ended, the last of its sound is on its way
    DONE = "done"


@dataclass(frozen=True)
class Request:
    """What a client asks of a response."""

    instructions: str = ""
    metadata: Event | None = None  # comes back as it came
    modality: str | None = None  # None: the session's
    max_tokens: int | str | None = None  # None: the session's
    sound: Event | None = None  # its format; None: the session's
    is_out_of_band: bool = False  # the conversation keeps nothing of it


class Response:
    """Each method gives the events that follow; what comes in a state that has no place for it gives none."""

    def __init__(
        self,
        session: Event,
        wanted: Request,
        play: Callable[[str, bytes, bool], None] | None = None,
    ):
        """`session`: what it is told to clients as; `play` takes the sound."""
        self.id = new_id("resp")
        self.item: Item | None = None
        self.state = State.CREATED
        self.is_cancelled = False  # the client wants its end; the engine may not know yet
        self.modality = wanted.modality or session["output_modalities"][0]
        self._play = play
        self._is_in_conversation = not wanted.is_out_of_band
        output = session["audio"]["output"] | ({"format": wanted.sound} if wanted.sound and not play else {})
        self._loudspeaker = AudioEncoder(output["format"]["type"])
        self._skip = CODE2WAV_DELAY * SAMPLE_BYTES  # of the sound: what code2wav is behind by
        self._left: int | None = None  # bytes of sound to come; None: the engine has not ended
        self._given = 0  # bytes of sound so far
        self._previous: str | None = None  # the item before its own
        self._final: tuple[str, Event] = ("completed", {})
        self._usage: Event | None = None
        self._about: Event = {
            "object": "realtime.response",
            "id": self.id,
            "status": "in_progress",
            "status_details": None,
            "output": [],
            "conversation_id": session["conversation_id"] if self._is_in_conversation else None,
            "output_modalities": [self.modality],
            "max_output_tokens": wanted.max_tokens or session["max_output_tokens"],
            "audio": {"output": {"format": output["format"], "voice": output["voice"]}},
            "usage": None,
            "metadata": wanted.metadata,
        }

    @property
    def is_due(self) -> bool:
        """Whether the engine has it still to begin or to end."""
        return self.state in (State.CREATED, State.SPEAKING)

    def created(self) -> list[Event]:
        """It exists."""
        return [{"type": "response.created", "response": dict(self._about)}]

    def begin(self, turn: int, previous_item_id: str | None) -> list[Event]:
        """The engine has begun: its item, empty as yet."""
        self.state = State.SPEAKING
        self._previous = previous_item_id
        self.item = Item(new_id("item"), "assistant", [], "in_progress", turn, is_spoken=self.modality == "audio")
        added = self.item.about()
        in_conversation = {"type": "conversation.item.added", "previous_item_id": previous_item_id, "item": added}
        part = {"type": self.modality, self._text_key: ""}
        self.item.content = [{"type": f"output_{self.modality}", self._text_key: ""}]
        return [
            {"type": "response.output_item.added", "response_id": self.id, "output_index": 0, "item": added},
            *([in_conversation] if self._is_in_conversation else []),
            {"type": "response.content_part.added", **self._place, "part": part},
        ]

    def text(self, delta: str) -> list[Event]:
        """The text grew."""
        if self.state is not State.SPEAKING or self.item is None:
            return []
        self.item.content[0][self._text_key] += delta
        return [{"type": f"response.{self._text_event}.delta", **self._place, "delta": delta}]

    def sound(self, pcm: bytes) -> list[Event]:
        """A tick's sound; when it is the last of a response that has ended, the end follows."""
        if self.state not in (State.SPEAKING, State.FINISHING):
            return []
        skipped = min(self._skip, len(pcm))
        self._skip -= skipped
        pcm = pcm[skipped:]
        if self._left is not None:
            pcm = pcm[: self._left]
            self._left -= len(pcm)
        self._given += len(pcm)
        is_last = self._left == 0
        events: list[Event] = []
        if self._play:
            if self.modality == "audio":
                self._play(self.id, b"" if self.is_cancelled else pcm, is_last)
        elif self.modality == "audio" and (delta := self._loudspeaker.feed(pcm, last=is_last)):
            events.append({"type": "response.output_audio.delta", **self._place, "delta": delta})
        return [*events, *self._end()] if is_last else events

    def ended(self, event: Event) -> None:
        """The engine's `answer_done`: its sound is `spoken_ms` long, the last of it comes with the next ticks."""
        self._left = max(0, event["spoken_ms"] * OUTPUT_HZ // 1000 * SAMPLE_BYTES - self._given)
        self._usage = usage_of(event)
        self.state = State.FINISHING
        if event["reason"] != "end":
            self._final = ("incomplete", {"reason": "max_output_tokens"})

    def interrupted(self, event: Event) -> list[Event]:
        """The engine's event of that name."""
        reason = "turn_detected" if event["by"] == "speech" else "client_cancelled"
        return self.stop(reason, usage_of(event), event["heard_text"])

    def stop(self, reason: str, usage: Event | None = None, heard_text: str | None = None) -> list[Event]:
        """It ends here: `turn_detected` or `client_cancelled`. What was heard of it is what its item keeps."""
        if self.state is State.DONE:
            return []
        self._usage = usage or self._usage
        if heard_text is not None and self.item:
            self.item.keep(heard_text)
        self._final = ("cancelled", {"reason": reason})
        return self._end()

    def fail(self, code: str, message: str) -> list[Event]:
        """It cannot go on."""
        self._final = ("failed", {"error": {"type": "server_error", "code": code, "message": message}})
        return [] if self.state is State.DONE else self._end()

    @property
    def _text_key(self) -> str:
        """Where a part of the content has its text."""
        return "transcript" if self.modality == "audio" else "text"

    @property
    def _text_event(self) -> str:
        return "output_audio_transcript" if self.modality == "audio" else "output_text"

    @property
    def _place(self) -> Event:
        assert self.item is not None
        return {"response_id": self.id, "item_id": self.item.id, "output_index": 0, "content_index": 0}

    def _end(self) -> list[Event]:
        """The rest of the ladder."""
        self.state = State.DONE
        status, details = self._final
        events: list[Event] = []
        if self.item is not None:
            events += self._close_item(self.item, status)
            self._about["output"] = [self.item.about()]
        self._about["status"] = status
        self._about["status_details"] = {"type": status, **details}
        self._about["usage"] = self._usage or NO_USAGE
        return [*events, {"type": "response.done", "response": dict(self._about)}]

    def _close_item(self, item: Item, status: str) -> list[Event]:
        item.status = "completed" if status == "completed" else "incomplete"
        said = {self._text_key: item.content[0][self._text_key]}
        events: list[Event] = []
        if self.modality == "audio":
            events.append({"type": "response.output_audio.done", **self._place})
        events.append({"type": f"response.{self._text_event}.done", **self._place, **said})
        about = item.about()
        in_conversation = {"type": "conversation.item.done", "previous_item_id": self._previous, "item": about}
        return [
            *events,
            {"type": "response.content_part.done", **self._place, "part": {"type": self.modality, **said}},
            {"type": "response.output_item.done", "response_id": self.id, "output_index": 0, "item": about},
            *([in_conversation] if self._is_in_conversation else []),
        ]


def usage_of(event: Mapping[str, Any]) -> Event | None:
    """Usage as the protocol counts it, from an engine's event; None where the server that counted is gone."""
    if "input_tokens" not in event:
        return None
    text, audio = event["output_text_tokens"], event["output_audio_tokens"]
    heard, read = event["input_audio_tokens"], event["input_tokens"]
    return {
        "total_tokens": read + text + audio,
        "input_tokens": read,
        "output_tokens": text + audio,
        "input_token_details": {
            "text_tokens": read - heard,
            "audio_tokens": heard,
            "image_tokens": 0,
            "cached_tokens": 0,
            "cached_tokens_details": {"text_tokens": 0, "audio_tokens": 0, "image_tokens": 0},
        },
        "output_token_details": {"text_tokens": text, "audio_tokens": audio},
    }


NO_USAGE = usage_of(
    dict.fromkeys(("input_tokens", "input_audio_tokens", "output_text_tokens", "output_audio_tokens"), 0)
)
"""Of a response that never began, or whose count went with its server: clients take it that there is one."""


def parse_request(wanted: Event) -> Request:
    """The `response` of a `response.create`. Raises `RealtimeError`."""
    conversation = wanted.get("conversation") or "auto"
    if conversation not in CONVERSATIONS:
        message = f"response.conversation is {shown(conversation)}, expected one of {', '.join(CONVERSATIONS)}"
        raise RealtimeError(message, param="response.conversation")
    if wanted.get("input") is not None:
        message = "response.input is not served: a response has the whole conversation before it"
        raise RealtimeError(message, param="response.input")
    modalities = wanted.get("output_modalities", wanted.get("modalities"))
    modality = None if modalities is None else sessions.modalities(modalities)[0]
    metadata = wanted.get("metadata")
    if metadata is not None:
        _expect_metadata(metadata)
    most = wanted.get("max_output_tokens", wanted.get("max_response_output_tokens"))
    output = sessions.object_of(sessions.object_of(wanted, "audio", "response"), "output", "response.audio")
    sound = output.get("format", wanted.get("output_audio_format"))
    return Request(
        sessions.instructions(wanted.get("instructions"), "response.instructions"),
        metadata,
        modality,
        None if most is None else sessions.output_tokens(most),
        None if sound is None else sessions.sound_format(sound, "response.audio.output.format"),
        conversation == "none",
    )


def _expect_metadata(metadata: Any) -> None:
    """Raises `RealtimeError` unless these are a few texts by name."""
    is_texts = isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    is_short = is_texts and all(len(name) <= MAX_NAME and len(text) <= MAX_VALUE for name, text in metadata.items())
    if not is_short or len(metadata) > MAX_METADATA:
        expected = f"an object of at most {MAX_METADATA} texts of {MAX_VALUE} characters, by names of {MAX_NAME}"
        raise RealtimeError(f"metadata is {shown(metadata)}, expected {expected}", param="response.metadata")
