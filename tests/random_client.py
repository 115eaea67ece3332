"""A client of the Realtime protocol that does anything at any time."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from tests.pairing import Pair, silence, speech

Event = dict[str, Any]
PAUSES_S = (0.0, 0.0, 0.02, 0.1, 0.32, 0.4, 1.0, 3.0)
SPEECH_MS = (40, 150, 400, 900)
UNKNOWN = "unknown"


class RandomClient:
    """Draws events; ids are those that the server has sent, or wrong ones."""

    def __init__(self, chance: random.Random, pair: Pair, has_long_items: bool = False):
        self._chance, self._pair = chance, pair
        self._texts = 0  # items of text, whose texts are unique
        self._has_long_items = has_long_items
        self._actions: dict[Callable[[], None], int] = {  # and how often
            self.append_speech: 9,
            self.append_silence: 5,
            self.commit: 5,
            self.clear: 3,
            self.create_text: 4,
            self.create_sound: 2,
            self.delete: 3,
            self.truncate: 3,
            self.retrieve: 1,
            self.respond: 6,
            self.respond_out_of_band: 3,
            self.cancel: 3,
            self.cancel_by_id: 2,
            self.update: 5,
            self.send_invalid: 1,
        }

    def act(self) -> None:
        """Send an event, and wait."""
        if self._pair.ledger.current and self._chance.random() < 0.3:
            action = self._chance.choice([self.delete, self.truncate, self.cancel, self.create_text, self.respond])
        else:
            (action,) = self._chance.choices(list(self._actions), list(self._actions.values()))
        action()
        self._pair.pass_time(self._chance.choice(PAUSES_S))

    def append_speech(self) -> None:
        self._append(speech, self._chance.choice(SPEECH_MS))

    def append_silence(self) -> None:
        self._append(silence, self._chance.choice(SPEECH_MS))

    def commit(self) -> None:
        self._pair.send("input_audio_buffer.commit")

    def clear(self) -> None:
        if self._pair.player and self._chance.random() < 0.5:
            self._pair.send("output_audio_buffer.clear")
        else:
            self._pair.send("input_audio_buffer.clear")

    def create_text(self) -> None:
        self._texts += 1
        text = f"text {self._texts}" + "x" * (400 if self._has_long_items and self._chance.random() < 0.3 else 0)
        role = self._chance.choice(["user", "user", "assistant", "system"])
        self._create(role, [{"type": "input_text", "text": text}])

    def create_sound(self) -> None:
        content = [{"type": "input_audio", "audio": speech(self._chance.choice(SPEECH_MS))}]
        if self._chance.random() < 0.3:
            self._texts += 1
            content.append({"type": "input_text", "text": f"text {self._texts}"})
        self._create("user", content)

    def delete(self) -> None:
        self._pair.send("conversation.item.delete", item_id=self._item_id())

    def truncate(self) -> None:
        spoken = [item_id for item_id in self._pair.ledger.items if item_id in self._pair.ledger.spoken]
        item_id = self._chance.choice(spoken[-2:]) if spoken else self._item_id()
        heard_ms = self._chance.choice([0, 100, 400, 900, 5000])
        self._pair.send("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=heard_ms)

    def retrieve(self) -> None:
        self._pair.send("conversation.item.retrieve", item_id=self._item_id())

    def respond(self) -> None:
        self._respond(self._wanted())

    def respond_out_of_band(self) -> None:
        self._respond({**self._wanted(), "conversation": "none"})

    def cancel(self) -> None:
        self._pair.send("response.cancel")

    def cancel_by_id(self) -> None:
        open_ids = [response.created["id"] for response in self._pair.ledger.open]
        self._pair.send("response.cancel", response_id=self._chance.choice([*open_ids, UNKNOWN]))

    def update(self) -> None:
        self._pair.update(**self._chance.choice(self._changes()))

    def send_invalid(self) -> None:
        kind, fields = self._chance.choice(
            [
                ("session.update", {"session": {"audio": 1}}),
                ("input_audio_buffer.append", {"audio": "?"}),
                ("conversation.item.create", {"item": {"type": "message", "role": "user", "content": []}}),
                ("conversation.item.retrieve", {"item_id": 5}),
                ("response.create", {"response": {"output_modalities": ["video"]}}),
            ]
        )
        refused = len(self._pair.ledger.refused)
        self._pair.send(kind, **fields)
        assert len(self._pair.ledger.refused) == refused + 1

    def _append(self, sound: Callable[[int], str], ms: int) -> None:
        """Append sound at once or, as a microphone does, in time."""
        if self._chance.random() < 0.5:
            self._pair.append(sound, ms)
            return
        for _ in range(0, ms, 40):
            self._pair.append(sound, 40)
            self._pair.pass_time(0.04)

    def _create(self, role: str, content: list[Event]) -> None:
        item: Event = {"type": "message", "role": role, "content": content}
        if self._chance.random() < 0.2:
            item["id"] = self._chance.choice("abc")
        self._pair.send("conversation.item.create", item=item)

    def _item_id(self) -> str:
        """Return most often one of the latest items."""
        ids = list(self._pair.ledger.items)
        return self._chance.choice([*ids[-2:], *ids[-2:], *ids[-4:], *ids[:2], UNKNOWN])

    def _wanted(self) -> Event:
        return self._chance.choice(
            [
                {},
                {},
                {"output_modalities": ["text"]},
                {"output_modalities": ["audio"]},
                {"max_output_tokens": 3},
                {"instructions": "Be brief."},
            ]
        )

    def _respond(self, wanted: Event) -> None:
        self._pair.respond(**wanted)

    def _changes(self) -> list[Event]:
        vad = {"type": "server_vad"}
        return [
            {"turn_detection": None},
            {"turn_detection": None},
            {"turn_detection": {**vad, "create_response": True, "interrupt_response": True}},
            {"turn_detection": vad},
            {"turn_detection": {**vad, "create_response": False}},
            {"turn_detection": {**vad, "interrupt_response": False}},
            {"turn_detection": {**vad, "silence_duration_ms": self._chance.choice([0, 100, 500])}},
            {"output_modalities": [self._chance.choice(["text", "audio"])]},
            {"instructions": self._chance.choice(["", "Be kind."])},
            {"max_output_tokens": self._chance.choice([2, 5, "inf"])},
        ]
