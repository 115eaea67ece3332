"""Responses to the `openai` package's client, unmodified: events, audio, text, out of band."""

from __future__ import annotations

import asyncio
import base64

import numpy as np

from config.settings import CODE2WAV_DELAY
from tests.conftest import Served
from tests.lockstep import open_client
from tests.realtime.stock_client import CHANGE, ORDER, connected, pcm24
from tests.sound import is_same_sound
from tests.turns import TICK

RESPONSE_EVENTS = [
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


def test_out_of_band_response_leaves_the_conversation_unchanged(served_barista: Served):
    """An application requests a summary of the conversation, which is not part of the conversation."""

    async def talk() -> None:
        async with connected(served_barista) as client:
            await client.send_audio(pcm24(ORDER))
            first = (await client.wait_for("response.done")).response
            before = len(client.events)
            await client.connection.response.create(
                response={
                    "conversation": "none",
                    "metadata": {"topic": "recap"},
                    "output_modalities": ["text"],
                    "instructions": "what did I order?",
                }
            )
            recap = (await client.wait_for("response.done", before)).response
            assert (recap.status, recap.metadata, recap.conversation_id) == ("completed", {"topic": "recap"}, None)
            assert recap.output[0].content[0].text
            assert not [kind for kind in client.kinds(before) if kind.startswith("conversation.")]
            before = len(client.events)
            await client.send_audio(pcm24(CHANGE, 0.8))
            second = (await client.wait_for("response.done", before)).response
            order = first.output[0].content[0].transcript.split(". ")[0].split(", ", 1)[1]
            assert order.replace("medium", "large") in second.output[0].content[0].transcript
            assert "error" not in client.kinds()

    asyncio.run(talk())


def test_response_emits_its_events_in_order(served_barista: Served):
    """A typed turn before any audio: the bridge's clock drives the ticks."""

    async def talk() -> None:
        async with connected(served_barista) as client:
            content = [{"type": "input_text", "text": "I would like a large latte please"}]
            item = {"id": "mine", "type": "message", "role": "user", "content": content}
            await client.connection.conversation.item.create(item=item)
            await client.connection.response.create(response={"metadata": {"client_event_id": "7"}})
            done = (await client.wait_for("response.done")).response
            kinds = [kind for kind in client.kinds() if kind not in ("session.created",)]
            assert kinds == ["conversation.item.added", "conversation.item.done", *RESPONSE_EVENTS]
            assert done.metadata == {"client_event_id": "7"}
            assert "latte" in done.output[0].content[0].transcript
            sound = b"".join(
                base64.b64decode(event.delta) for event in client.events if event.type == "response.output_audio.delta"
            )
            assert len(sound) == done.usage.output_token_details.audio_tokens * 1920 * 2
            deltas = [event.delta for event in client.events if event.type == "response.output_audio_transcript.delta"]
            assert "".join(deltas) == done.output[0].content[0].transcript

    asyncio.run(talk())


def test_audio_equals_that_of_the_websocket_protocol(served_barista: Served):
    """Compared from the end of code2wav's delay to the end of the answer."""
    words = "I would like a large latte please"
    reference = open_client(served_barista, "detection=manual")
    reference.send_event("message", text=words)
    done = reference.wait_for("answer_done")
    reference.send_audio(np.zeros(TICK, np.int16))
    reference.socket.close()
    expected = np.concatenate(reference.sounds)[CODE2WAV_DELAY:][: done["spoken_ms"] * 24]

    async def talk() -> None:
        async with connected(served_barista) as client:
            content = [{"type": "input_text", "text": words}]
            await client.connection.conversation.item.create(
                item={"type": "message", "role": "user", "content": content}
            )
            await client.connection.response.create()
            await client.wait_for("response.done")
            deltas = [event.delta for event in client.events if event.type == "response.output_audio.delta"]
            found = np.frombuffer(b"".join(base64.b64decode(delta) for delta in deltas), np.int16)
            assert len(found) == len(expected) > 24_000
            assert is_same_sound(found, expected)

    asyncio.run(talk())


def test_text_response_has_no_audio(served_barista: Served):
    async def talk() -> None:
        async with connected(served_barista, output_modalities=["text"]) as client:
            content = [{"type": "input_text", "text": "I would like a latte please"}]
            await client.connection.conversation.item.create(
                item={"type": "message", "role": "user", "content": content}
            )
            await client.connection.response.create()
            done = (await client.wait_for("response.done")).response
            assert "latte" in done.output[0].content[0].text
            assert "response.output_audio.delta" not in [event.type for event in client.events]

    asyncio.run(talk())
