"""Errors and settings of a session with the `openai` package's client, unmodified."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.conftest import Served
from tests.realtime.stock_client import connected


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
def test_invalid_event_is_an_error_and_the_session_continues(served_barista: Served, event, code):
    async def talk() -> None:
        async with connected(served_barista) as client:
            await client.connection.send_raw(json.dumps({**event, "event_id": "mine"}))
            error = (await client.wait_for("error")).error
            assert (error.code, error.event_id) == (code, "mine")
            await client.connection.session.update(session={"type": "realtime", "instructions": "Be brief."})
            assert (await client.wait_for("session.updated")).session.instructions == "Be brief."

    asyncio.run(talk())


def test_unsupported_settings_are_accepted_and_the_session_reports_the_effective_ones(served_barista: Served):
    async def talk() -> None:
        async with connected(served_barista) as client:
            await client.connection.session.update(
                session={
                    "type": "realtime",
                    "tracing": "auto",
                    "audio": {
                        "input": {"turn_detection": {"type": "semantic_vad", "eagerness": "high"}},
                        "output": {"voice": "marin", "speed": 1.2},
                    },
                }
            )
            session = (await client.wait_for("session.updated")).session
            assert session.audio.input.turn_detection.type == "server_vad"
            assert session.audio.input.turn_detection.interrupt_response is True
            assert session.audio.output.voice == "ethan"
            assert session.tracing is None

    asyncio.run(talk())
