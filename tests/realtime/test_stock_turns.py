"""Turns of the `openai` package's client, unmodified: detected, interrupted, committed, push to talk."""

from __future__ import annotations

import asyncio
import base64

import pytest

from tests.conftest import Served
from tests.realtime.stock_client import CHANGE, ORDER, connected, pcm24


def test_openai_speaks_twice_and_interrupts(served_barista: Served):
    async def talk() -> None:
        async with connected(served_barista) as client:
            await client.send_audio(pcm24(ORDER))
            await client.wait_for("response.output_audio.delta")
            before = len(client.events)
            await client.send_audio(pcm24(CHANGE, 0.3))
            first = (await client.wait_for("response.done", before)).response
            assert (first.status, first.status_details.reason) == ("cancelled", "turn_detected")
            kinds = client.kinds(before)
            assert kinds.index("input_audio_buffer.speech_started") < kinds.index("response.done")
            item = first.output[0].id
            await client.connection.conversation.item.truncate(item_id=item, content_index=0, audio_end_ms=300)
            truncated = await client.wait_for("conversation.item.truncated", before)
            assert (truncated.item_id, truncated.content_index, truncated.audio_end_ms) == (item, 0, 300)
            await client.send_audio(bytes(48_000))
            committed = await client.wait_for("input_audio_buffer.committed", before)
            after = len(client.events)
            second = (await client.wait_for("response.done", after)).response
            assert second.status == "completed"
            assert "large" in second.output[0].content[0].transcript
            assert second.usage.input_tokens > second.usage.input_token_details.audio_tokens > 0
            await client.connection.conversation.item.retrieve(item_id=committed.item_id)
            retrieved = await client.wait_for("conversation.item.retrieved")
            assert retrieved.item.role == "user"
            ids = [event.event_id for event in client.events]
            assert len(set(ids)) == len(ids)
            assert "error" not in client.kinds()

    asyncio.run(talk())


@pytest.mark.parametrize("kind", ["audio/pcm", "audio/pcmu", "audio/pcma"])
def test_committed_turn_is_answered_on_request(served_barista: Served, kind: str):
    """Manual detection, in each of the three formats: audio faster than real time, a commit, `response.create`."""
    from frontend.audio.formats import AudioEncoder

    async def talk() -> None:
        formats = {"audio": {"input": {"turn_detection": None, "format": {"type": kind}}}}
        async with connected(served_barista, **formats) as client:
            audio = AudioEncoder(kind).feed(pcm24(ORDER, 0.2), last=True)
            await client.connection.input_audio_buffer.append(audio=audio)
            await client.connection.input_audio_buffer.commit()
            await client.wait_for("conversation.item.done")
            await asyncio.sleep(0.5)
            assert "response.created" not in client.kinds()
            await client.connection.response.create()
            done = (await client.wait_for("response.done")).response
            assert done.status == "completed"
            assert done.output[0].content[0].transcript.startswith("Okay")

    asyncio.run(talk())


def test_push_to_talk_commits_and_requests_without_waiting(served_barista: Served):
    """Each answer follows the commit of its turn; the second turn interrupts the first answer."""

    async def talk() -> None:
        async with connected(served_barista, audio={"input": {"turn_detection": None}}) as client:
            connection = client.connection
            for number, words in enumerate((ORDER, "make it a large mocha")):
                known = len(client.events)
                await connection.input_audio_buffer.append(audio=base64.b64encode(pcm24(words, 0.2)).decode())
                await connection.input_audio_buffer.commit()
                await connection.response.create()
                await client.wait_for("response.output_audio.delta", known)
                kinds = client.kinds(known)
                assert kinds.index("input_audio_buffer.committed") < kinds.index("response.created")
                if number == 0:
                    await connection.response.cancel()
                    await connection.response.create()  # before the bridge confirms the cancellation
                    assert (await client.wait_for("response.done", known)).response.status == "cancelled"
                done = (await client.wait_for("response.done", len(client.events))).response
                assert done.status == "completed"
                assert done.output[0].content[0].transcript
            assert "error" not in client.kinds()

    asyncio.run(asyncio.wait_for(talk(), 60))


@pytest.mark.parametrize("before", ["commits", "an item with sound"])
def test_turns_are_detected_after_undetected_input(served_barista: Served, before: str):
    """Events report positions in the client's audio, although the detector's clock has advanced further."""

    async def talk() -> None:
        async with connected(served_barista) as client:
            sound, sent_ms = base64.b64encode(pcm24(ORDER, 0.2)).decode(), 0.0
            if before == "commits":
                sent_ms = len(pcm24(ORDER, 0.2)) / 48
                await client.connection.session.update(
                    session={"type": "realtime", "audio": {"input": {"turn_detection": None}}}
                )
                await client.connection.input_audio_buffer.append(audio=sound)
                await client.connection.input_audio_buffer.commit()
                await client.wait_for("input_audio_buffer.committed")
                await client.connection.session.update(
                    session={"type": "realtime", "audio": {"input": {"turn_detection": {"type": "server_vad"}}}}
                )
            else:
                content = {"type": "input_audio", "audio": sound}
                await client.connection.conversation.item.create(
                    item={"type": "message", "role": "user", "content": [content]}
                )
            for _ in range(2):
                known = len(client.events)
                await client.send_audio(pcm24(ORDER, 1.5))
                started = await client.wait_for("input_audio_buffer.speech_started", known)
                assert sent_ms - 300 <= started.audio_start_ms <= sent_ms + 100, "at most 300 ms before the speech"
                stopped = await client.wait_for("input_audio_buffer.speech_stopped", known)
                sent_ms += len(pcm24(ORDER, 1.5)) / 48
                assert sent_ms - 1500 < stopped.audio_end_ms < sent_ms
                assert (await client.wait_for("response.done", known)).response.status == "completed"
            assert "error" not in client.kinds()

    asyncio.run(asyncio.wait_for(talk(), 90))
