"""A message that a response streams: one output item, with its events in the protocol's order."""

from __future__ import annotations

from frontend.audio.formats import AudioEncoder
from frontend.realtime.events import Event
from frontend.realtime.items import Item

AUDIO, TEXT = "audio", "text"


class OutputMessage:
    """One output item of a response. Methods return the events that follow."""

    def __init__(
        self,
        response_id: str,
        output_index: int,
        item: Item,
        modality: str,
        audio_format: str,
        previous_item_id: str | None,
        is_in_conversation: bool,
    ):
        """Create the message of `item`; `previous_item_id`: id of the item before it in the conversation."""
        self.item = item
        self._response_id, self._output_index = response_id, output_index
        self._modality = modality
        self._previous = previous_item_id
        self._is_in_conversation = is_in_conversation
        self._encoder = AudioEncoder(audio_format)
        self._key = "transcript" if modality == AUDIO else "text"  # name of the text in a content part
        self._kind = "response.output_audio_transcript" if modality == AUDIO else "response.output_text"
        self._address = {
            "response_id": response_id,
            "item_id": item.id,
            "output_index": output_index,
            "content_index": 0,
        }

    def added(self) -> list[Event]:
        """Start the item with an empty content part."""
        about = self.item.about()
        self.item.content = [{"type": f"output_{self._modality}", self._key: ""}]
        part = {"type": self._modality, self._key: ""}
        return [
            self._output_item("response.output_item.added", about),
            *self._conversation_item("conversation.item.added", about),
            {"type": "response.content_part.added", **self._address, "part": part},
        ]

    def add_text(self, delta: str) -> list[Event]:
        """Append text."""
        self.item.content[0][self._key] += delta
        return [{"type": f"{self._kind}.delta", **self._address, "delta": delta}]

    def add_audio(self, pcm: bytes, is_last: bool) -> list[Event]:
        """Append audio, PCM16 at 24 kHz."""
        delta = self._encoder.feed(pcm, last=is_last)
        return [{"type": "response.output_audio.delta", **self._address, "delta": delta}] if delta else []

    def done(self, is_completed: bool) -> list[Event]:
        """End the item."""
        self.item.status = "completed" if is_completed else "incomplete"
        text = {self._key: self.item.content[0][self._key]}
        about = self.item.about()
        audio = [{"type": "response.output_audio.done", **self._address}] if self._modality == AUDIO else []
        return [
            *audio,
            {"type": f"{self._kind}.done", **self._address, **text},
            {"type": "response.content_part.done", **self._address, "part": {"type": self._modality, **text}},
            self._output_item("response.output_item.done", about),
            *self._conversation_item("conversation.item.done", about),
        ]

    def _output_item(self, kind: str, about: Event) -> Event:
        return {"type": kind, "response_id": self._response_id, "output_index": self._output_index, "item": about}

    def _conversation_item(self, kind: str, about: Event) -> list[Event]:
        if not self._is_in_conversation:
            return []
        return [{"type": kind, "previous_item_id": self._previous, "item": about}]
