"""The protocol without a socket and without an engine: what a client says, and what is asked of the engine."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator

import pytest

from config import Settings
from frontend.realtime.conversation import RealtimeConversation
from frontend.realtime.events import RealtimeError, parse
from frontend.triton import TickOut


class Talk:
    """A conversation whose engine is the test."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.told: list[dict] = []
        self.conversation = RealtimeConversation(
            Settings.load(environ={}), ["ethan"], "", 0, lambda *events: self.told.extend(events), lambda: None
        )

    def say(self, kind: str, **fields: object) -> None:
        self.loop.run_until_complete(self.conversation.take(parse(json.dumps({"type": kind, **fields}))))

    def asked(self) -> list[dict]:
        """The controls that have been asked of the engine, in order."""

        async def ticks() -> list[dict]:
            found = []
            while True:
                try:
                    found.append((await asyncio.wait_for(self.conversation.clock.next(), 0.05)).asked)
                except asyncio.TimeoutError:
                    return [asked for asked in found if asked]

        return self.loop.run_until_complete(ticks())

    def engine(self, **event: object) -> None:
        self.conversation.deliver(TickOut(b"", "", [event]))


@pytest.fixture
def talk() -> Iterator[Talk]:
    one = Talk()
    yield one
    one.loop.close()


def typed(item_id: str) -> dict:
    return {"type": "message", "role": "user", "id": item_id, "content": [{"type": "input_text", "text": "Hello."}]}


def test_an_item_that_is_deleted_before_the_engine_has_it_is_forgotten_there(talk: Talk):
    talk.say("conversation.item.create", item=typed("first"))
    talk.say("conversation.item.create", item=typed("second"))
    talk.say("conversation.item.delete", item_id="first")
    assert [set(asked) for asked in talk.asked()] == [{"items"}, {"items"}]
    talk.engine(type="committed", turn=1)
    talk.engine(type="committed", turn=2)
    assert [json.loads(asked["forget"]) for asked in talk.asked()] == [{"turn": 1, "part": "user"}]


def test_a_turn_of_speech_that_is_too_long_is_not_the_item_that_waits(talk: Talk):
    talk.say("conversation.item.create", item=typed("first"))
    talk.engine(type="error", code="turn_too_long", message="the user's turn is dropped")
    talk.engine(type="committed", turn=2)
    talk.say("conversation.item.delete", item_id="first")
    assert json.loads(talk.asked()[-1]["forget"])["turn"] == 2


@pytest.mark.parametrize("frame", ['{"type": "session.update", "event_id": "\\ud800"}', '{"type": "x", "y": NaN}'])
def test_what_could_not_be_said_back_is_no_event(frame):
    with pytest.raises(RealtimeError) as refused:
        parse(frame)
    assert refused.value.code == "invalid_json"


@pytest.mark.parametrize("metadata", [{"a": 1}, {"a": "x" * 513}, {str(n): "" for n in range(17)}, "x", []])
def test_metadata_are_a_few_texts(talk: Talk, metadata):
    with pytest.raises(RealtimeError, match="expected an object of at most 16 texts"):
        talk.say("response.create", response={"metadata": metadata})


def test_sound_that_nobody_commits_is_bounded(talk: Talk):
    """A minute: events beyond it are refused; a track's oldest sound is dropped, since it never ends."""
    talk.say("session.update", session={"type": "realtime", "audio": {"input": {"turn_detection": None}}})
    second = base64.b64encode(bytes(48_000)).decode()
    for _ in range(61):
        talk.say("input_audio_buffer.append", audio=second)
    with pytest.raises(RealtimeError) as refused:
        talk.say("input_audio_buffer.append", audio=second)
    assert refused.value.code == "input_audio_buffer_full"
    talk.loop.run_until_complete(talk.conversation.hear(b"\1" * 32_000))
    assert talk.conversation.clock.held_ms == 60_000
    talk.say("input_audio_buffer.clear")
    talk.say("input_audio_buffer.append", audio=second)


@pytest.mark.parametrize("deep", ['{"x":' * 700 + "1" + "}" * 700, "[" * 700 + "]" * 700])
def test_what_is_nested_without_end_is_no_event(deep: str):
    with pytest.raises(RealtimeError, match="nested more than 20 deep") as refused:
        parse('{"type": "session.update", "session": {"x": ' + deep + "}}")
    assert refused.value.code == "invalid_json"
    assert len(refused.value.message) < 500
