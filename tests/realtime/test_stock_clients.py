"""Stock clients of the Realtime protocol, unmodified, with the default checkpoint: two turns, an interruption."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
from typing import Any

import numpy as np
import pytest
import soxr
from openai import AsyncOpenAI

from config.settings import CODE2WAV_DELAY
from tests.conftest import Served
from tests.lockstep import open_client
from tests.sound import is_same_sound
from tests.turns import TICK
from training.judges.flite import synthesize

os.environ["OPENAI_AGENTS_DISABLE_TRACING"] = "1"
CHUNK = 960  # bytes of 20 ms at 24 kHz
ORDER = "Can I get a medium dark roast latte with soy milk?"
CHANGE = "Make it large."
LADDER = [
    "response.created",
    "response.output_item.added",
    "conversation.item.added",
    "response.content_part.added",
    "response.output_audio.done",
    "response.output_audio_transcript.done",
    "response.content_part.done",
    "response.output_item.done",
    "conversation.item.done",
    "response.done",
]


def pcm24(words: str, silence_s: float = 1.0) -> bytes:
    """A sentence by a voice that the training never heard, and silence: PCM16 at 24 kHz."""
    spoken = soxr.resample(synthesize(words, "rms"), 16_000, 24_000).astype(np.int16)
    return bytes(spoken.tobytes() + bytes(int(silence_s * 24_000) * 2))


class Talker:
    """A client of the `openai` package; events are noted as they come."""

    def __init__(self, connection: Any):
        self.connection = connection
        self.events: list[Any] = []
        self._changed = asyncio.Event()

    async def listen(self) -> None:
        async for event in self.connection:
            self.events.append(event)
            self._changed.set()

    async def say(self, pcm: bytes) -> None:
        """At the pace of a microphone."""
        begun_s = asyncio.get_running_loop().time()
        for start in range(0, len(pcm), CHUNK):
            audio = base64.b64encode(pcm[start : start + CHUNK]).decode()
            await self.connection.input_audio_buffer.append(audio=audio)
            ahead_s = start / 48_000 - (asyncio.get_running_loop().time() - begun_s)
            await asyncio.sleep(max(0.0, ahead_s))

    async def wait_for(self, kind: str, after: int = 0) -> Any:
        """The first event of a kind among those after so many."""

        async def found() -> Any:
            while True:
                self._changed.clear()
                for event in self.events[after:]:
                    if event.type == kind:
                        return event
                await self._changed.wait()

        return await asyncio.wait_for(found(), 30)

    def kinds(self, after: int = 0) -> list[str]:
        return [event.type for event in self.events[after:] if not event.type.endswith(".delta")]


@contextlib.asynccontextmanager
async def talking(served_barista: Served, **session: Any):
    client = AsyncOpenAI(api_key="none", base_url=f"{served_barista.http}/v1")
    async with client.realtime.connect(model="gpt-realtime") as connection:
        talker = Talker(connection)
        listening = asyncio.create_task(talker.listen())
        await talker.wait_for("session.created")
        if session:
            await connection.session.update(session={"type": "realtime", **session})
            await talker.wait_for("session.updated")
        try:
            yield talker
        finally:
            listening.cancel()


def test_openai_speaks_twice_and_interrupts(served_barista: Served):
    async def talk() -> None:
        async with talking(served_barista) as talker:
            await talker.send_audio(pcm24(ORDER))
            await talker.wait_for("response.output_audio.delta")
            before = len(talker.events)
            await talker.send_audio(pcm24(CHANGE, 0.3))
            first = (await talker.wait_for("response.done", before)).response
            assert (first.status, first.status_details.reason) == ("cancelled", "turn_detected")
            kinds = talker.kinds(before)
            assert kinds.index("input_audio_buffer.speech_started") < kinds.index("response.done")
            item = first.output[0].id
            await talker.connection.conversation.item.truncate(item_id=item, content_index=0, audio_end_ms=300)
            truncated = await talker.wait_for("conversation.item.truncated", before)
            assert (truncated.item_id, truncated.content_index, truncated.audio_end_ms) == (item, 0, 300)
            await talker.send_audio(bytes(48_000))
            committed = await talker.wait_for("input_audio_buffer.committed", before)
            after = len(talker.events)
            second = (await talker.wait_for("response.done", after)).response
            assert second.status == "completed"
            assert "large" in second.output[0].content[0].transcript
            assert second.usage.input_tokens > second.usage.input_token_details.audio_tokens > 0
            await talker.connection.conversation.item.retrieve(item_id=committed.item_id)
            retrieved = await talker.wait_for("conversation.item.retrieved")
            assert retrieved.item.role == "user"
            ids = [event.event_id for event in talker.events]
            assert len(set(ids)) == len(ids)
            assert "error" not in talker.kinds()

    asyncio.run(talk())


def test_a_response_out_of_band_leaves_the_conversation_as_it_was(served_barista: Served):
    """As an application classifies what was said, beside the conversation."""

    async def talk() -> None:
        async with talking(served_barista) as talker:
            await talker.send_audio(pcm24(ORDER))
            first = (await talker.wait_for("response.done")).response
            before = len(talker.events)
            await talker.connection.response.create(
                response={
                    "conversation": "none",
                    "metadata": {"topic": "recap"},
                    "output_modalities": ["text"],
                    "instructions": "what did I order?",
                }
            )
            apart = (await talker.wait_for("response.done", before)).response
            assert (apart.status, apart.metadata, apart.conversation_id) == ("completed", {"topic": "recap"}, None)
            assert apart.output[0].content[0].text
            assert not [kind for kind in talker.kinds(before) if kind.startswith("conversation.")]
            before = len(talker.events)
            await talker.send_audio(pcm24(CHANGE, 0.8))
            second = (await talker.wait_for("response.done", before)).response
            order = first.output[0].content[0].transcript.split(". ")[0].split(", ", 1)[1]
            assert order.replace("medium", "large") in second.output[0].content[0].transcript
            assert "error" not in talker.kinds()

    asyncio.run(talk())


def test_a_response_has_the_whole_ladder_in_order(served_barista: Served):
    """A typed turn, before any sound: the bridge keeps its own clock."""

    async def talk() -> None:
        async with talking(served_barista) as talker:
            content = [{"type": "input_text", "text": "I would like a large latte please"}]
            item = {"id": "mine", "type": "message", "role": "user", "content": content}
            await talker.connection.conversation.item.create(item=item)
            await talker.connection.response.create(response={"metadata": {"client_event_id": "7"}})
            done = (await talker.wait_for("response.done")).response
            kinds = [kind for kind in talker.kinds() if kind not in ("session.created",)]
            assert kinds == ["conversation.item.added", "conversation.item.done", *LADDER]
            assert done.metadata == {"client_event_id": "7"}
            assert "latte" in done.output[0].content[0].transcript
            sound = b"".join(
                base64.b64decode(event.delta) for event in talker.events if event.type == "response.output_audio.delta"
            )
            assert len(sound) == done.usage.output_token_details.audio_tokens * 1920 * 2
            deltas = [event.delta for event in talker.events if event.type == "response.output_audio_transcript.delta"]
            assert "".join(deltas) == done.output[0].content[0].transcript

    asyncio.run(talk())


def test_the_sound_is_that_of_ws_pcm16_to_the_sample(served_barista: Served):
    """Without what code2wav is behind by, and without the silence after it."""
    words = "I would like a large latte please"
    client = open_client(served_barista, "detection=manual")
    client.send_event("message", text=words)
    done = client.wait_for("answer_done")
    client.send_audio(np.zeros(TICK, np.int16))
    client.socket.close()
    expected = np.concatenate(client.sounds)[CODE2WAV_DELAY:][: done["spoken_ms"] * 24]

    async def talk() -> None:
        async with talking(served_barista) as talker:
            content = [{"type": "input_text", "text": words}]
            await talker.connection.conversation.item.create(
                item={"type": "message", "role": "user", "content": content}
            )
            await talker.connection.response.create()
            await talker.wait_for("response.done")
            deltas = [event.delta for event in talker.events if event.type == "response.output_audio.delta"]
            found = np.frombuffer(b"".join(base64.b64decode(delta) for delta in deltas), np.int16)
            assert len(found) == len(expected) > 24_000
            assert is_same_sound(found, expected)

    asyncio.run(talk())


@pytest.mark.parametrize("kind", ["audio/pcm", "audio/pcmu", "audio/pcma"])
def test_a_committed_turn_is_answered_when_asked_for(served_barista: Served, kind: str):
    """No detection: sound faster than real time, a commit, `response.create`; in each of the three formats."""
    from frontend.audio.formats import AudioEncoder

    async def talk() -> None:
        formats = {"audio": {"input": {"turn_detection": None, "format": {"type": kind}}}}
        async with talking(served_barista, **formats) as talker:
            audio = AudioEncoder(kind).feed(pcm24(ORDER, 0.2), last=True)
            await talker.connection.input_audio_buffer.append(audio=audio)
            await talker.connection.input_audio_buffer.commit()
            await talker.wait_for("conversation.item.done")
            await asyncio.sleep(0.5)
            assert "response.created" not in talker.kinds()
            await talker.connection.response.create()
            done = (await talker.wait_for("response.done")).response
            assert done.status == "completed"
            assert done.output[0].content[0].transcript.startswith("Okay")

    asyncio.run(talk())


def test_push_to_talk_commits_and_asks_in_one_breath(served_barista: Served):
    """The answer is to the turn that was committed, and comes after it; the second turn interrupts the first answer."""

    async def talk() -> None:
        async with talking(served_barista, audio={"input": {"turn_detection": None}}) as talker:
            connection = talker.connection
            for number, words in enumerate((ORDER, "make it a large mocha")):
                known = len(talker.events)
                await connection.input_audio_buffer.append(audio=base64.b64encode(pcm24(words, 0.2)).decode())
                await connection.input_audio_buffer.commit()
                await connection.response.create()
                await talker.wait_for("response.output_audio.delta", known)
                kinds = talker.kinds(known)
                assert kinds.index("input_audio_buffer.committed") < kinds.index("response.created")
                if number == 0:
                    await connection.response.cancel()
                    await connection.response.create()  # before the cancellation is through
                    assert (await talker.wait_for("response.done", known)).response.status == "cancelled"
                done = (await talker.wait_for("response.done", len(talker.events))).response
                assert done.status == "completed"
                assert done.output[0].content[0].transcript
            assert "error" not in talker.kinds()

    asyncio.run(asyncio.wait_for(talk(), 60))


@pytest.mark.parametrize("before", ["commits", "an item with sound"])
def test_turns_are_detected_after_others_were_not(served_barista: Served, before: str):
    """The detector's clock went on meanwhile; clients are told where in their own sound it was."""

    async def talk() -> None:
        async with talking(served_barista) as talker:
            sound, said_ms = base64.b64encode(pcm24(ORDER, 0.2)).decode(), 0.0
            if before == "commits":
                said_ms = len(pcm24(ORDER, 0.2)) / 48
                await talker.connection.session.update(
                    session={"type": "realtime", "audio": {"input": {"turn_detection": None}}}
                )
                await talker.connection.input_audio_buffer.append(audio=sound)
                await talker.connection.input_audio_buffer.commit()
                await talker.wait_for("input_audio_buffer.committed")
                await talker.connection.session.update(
                    session={"type": "realtime", "audio": {"input": {"turn_detection": {"type": "server_vad"}}}}
                )
            else:
                part = {"type": "input_audio", "audio": sound}
                await talker.connection.conversation.item.create(
                    item={"type": "message", "role": "user", "content": [part]}
                )
            for _ in range(2):
                known = len(talker.events)
                await talker.send_audio(pcm24(ORDER, 1.5))
                started = await talker.wait_for("input_audio_buffer.speech_started", known)
                assert said_ms - 300 <= started.audio_start_ms <= said_ms + 100, "with 300 ms before it"
                stopped = await talker.wait_for("input_audio_buffer.speech_stopped", known)
                said_ms += len(pcm24(ORDER, 1.5)) / 48
                assert said_ms - 1500 < stopped.audio_end_ms < said_ms
                assert (await talker.wait_for("response.done", known)).response.status == "completed"
            assert "error" not in talker.kinds()

    asyncio.run(asyncio.wait_for(talk(), 90))


def test_text_alone_comes_without_sound(served_barista: Served):
    async def talk() -> None:
        async with talking(served_barista, output_modalities=["text"]) as talker:
            content = [{"type": "input_text", "text": "I would like a latte please"}]
            await talker.connection.conversation.item.create(
                item={"type": "message", "role": "user", "content": content}
            )
            await talker.connection.response.create()
            done = (await talker.wait_for("response.done")).response
            assert "latte" in done.output[0].content[0].text
            assert "response.output_audio.delta" not in [event.type for event in talker.events]

    asyncio.run(talk())


@pytest.mark.parametrize(
    ("event", "code"),
    [
        ({"type": "response.cancel"}, "response_cancel_not_active"),
        ({"type": "input_audio_buffer.commit"}, "input_audio_buffer_commit_empty"),
        ({"type": "conversation.item.retrieve", "item_id": "none"}, "item_retrieve_invalid_item_id"),
        ({"type": "conversation.item.delete", "item_id": "none"}, "item_delete_invalid_item_id"),
        ({"type": "no.such.event"}, "unknown_event_type"),
        ({"type": "input_audio_buffer.append", "audio": "no base64!"}, "invalid_value"),
        ({"type": "output_audio_buffer.clear"}, "invalid_event"),
        (
            {"type": "session.update", "session": {"audio": {"input": {"format": {"type": "audio/mp3"}}}}},
            "invalid_value",
        ),
    ],
)
def test_what_cannot_be_done_is_the_protocols_error_and_the_session_goes_on(served_barista: Served, event, code):
    async def talk() -> None:
        async with talking(served_barista) as talker:
            await talker.connection.send_raw(json.dumps({**event, "event_id": "mine"}))
            error = (await talker.wait_for("error")).error
            assert (error.code, error.event_id) == (code, "mine")
            await talker.connection.session.update(session={"type": "realtime", "instructions": "Be brief."})
            assert (await talker.wait_for("session.updated")).session.instructions == "Be brief."

    asyncio.run(talk())


def test_what_is_not_known_is_accepted_and_the_session_says_what_is_done(served_barista: Served):
    async def talk() -> None:
        async with talking(served_barista) as talker:
            await talker.connection.session.update(
                session={
                    "type": "realtime",
                    "tracing": "auto",
                    "audio": {
                        "input": {"turn_detection": {"type": "semantic_vad", "eagerness": "high"}},
                        "output": {"voice": "marin", "speed": 1.2},
                    },
                }
            )
            session = (await talker.wait_for("session.updated")).session
            assert session.audio.input.turn_detection.type == "server_vad"
            assert session.audio.input.turn_detection.interrupt_response is True
            assert session.audio.output.voice == "ethan"
            assert session.tracing is None

    asyncio.run(talk())


def test_openai_agents_greets_hears_and_is_interrupted(served_barista: Served):
    from agents.realtime import RealtimeAgent, RealtimeRunner

    async def talk() -> None:
        runner = RealtimeRunner(RealtimeAgent(name="barista", instructions="You are a barista."))
        config = {
            "api_key": "none",
            "url": f"{served_barista.http.replace('http', 'ws')}/v1/realtime?model=gpt-realtime",
        }
        session = await runner.run(model_config=config)
        kinds: list[str] = []
        texts: dict[str, str] = {}

        async def listen() -> None:
            async for event in session:
                kinds.append(event.type)
                if event.type == "history_updated":
                    for item in event.history:
                        if getattr(item, "role", "") == "assistant":
                            texts[item.item_id] = "".join(
                                getattr(part, "transcript", "") or "" for part in item.content
                            )

        async def until(kind: str, count: int = 1) -> None:
            while kinds.count(kind) < count:
                await asyncio.sleep(0.05)

        async with session:
            listening = asyncio.create_task(listen())
            await session.send_message("I would like a latte please")
            await asyncio.wait_for(until("audio_end"), 20)
            for words in (ORDER, CHANGE):
                pcm = pcm24(words)
                for start in range(0, len(pcm), CHUNK):
                    await session.send_audio(pcm[start : start + CHUNK])
                    await asyncio.sleep(0.02)
            await asyncio.wait_for(until("audio_interrupted"), 20)
            await session.send_audio(bytes(48_000))
            await asyncio.wait_for(until("audio_end", 3), 30)
            while not any("large" in text for text in texts.values()):
                await asyncio.sleep(0.05)
            listening.cancel()
        assert "error" not in kinds
        assert any("latte" in text for text in texts.values())

    asyncio.run(asyncio.wait_for(talk(), 90))
