"""Kinds of clients as in production: short conversations, barge-ins, lost connections, protocol errors, Realtime."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable

import numpy as np
from websockets.asyncio.client import connect

from benchmarks.paced_client import PacedClient, paced_client
from benchmarks.reference import LIMITS, Script
from config import Settings
from config.settings import INPUT_HZ
from training.judges.dialogue import DialogueError, dialogue

SoakClient = Callable[[Settings, Script, random.Random], Awaitable[None]]
TIMEOUT_S = 60.0
INVALID_MESSAGES: tuple[str | bytes, ...] = (
    "not JSON", '{"type": "nonsense"}', b"odd", '{"type": "message"}', '{"type": "forget"}',
)  # fmt: skip


def _options(draw: random.Random, **more: object) -> str:
    options = {"seed": draw.randrange(2**31), "temperature": draw.choice((0, 0.9)), **LIMITS, **more}
    return "&".join(f"{name}={value}" for name, value in options.items())


async def speech(settings: Settings, script: Script, draw: random.Random) -> None:
    """Speak a sentence whose end the server detects, receive the answer, and end the conversation."""
    async with dialogue(settings, _options(draw)) as talk:
        await talk.send_audio(script.speech)
        await talk.wait_for("answer_done", 0)


async def typed_messages(settings: Settings, script: Script, draw: random.Random) -> None:
    """Send one to three typed messages."""
    async with dialogue(settings, _options(draw, detection="manual")) as talk:
        for _ in range(draw.randint(1, 3)):
            since = len(talk.events)
            await talk.send_control("message", text=script.message)
            await talk.wait_for("answer_done", since)


async def barge_in(settings: Settings, script: Script, draw: random.Random) -> None:
    """Commit a turn, and interrupt its answer by a typed message."""
    async with dialogue(settings, _options(draw, detection="manual")) as talk:
        await talk.send_audio(script.speech)
        await talk.send_control("commit")
        started = await talk.wait_for("answer_started", 0)
        await talk.send_audio(np.zeros(draw.randrange(INPUT_HZ), np.int16))
        await talk.send_control("message", text=script.message)
        await talk.wait_for("answer_done", started or 0)


async def lost_connection(settings: Settings, script: Script, draw: random.Random) -> None:
    """Abort the connection within a second, without a close frame."""
    async with paced_client(f"{settings.bridge.url}/ws/pcm16?{_options(draw, detection='manual')}") as client:
        await client.socket.send(script.speech[: draw.randrange(1, len(script.speech))].tobytes())
        if draw.random() < 0.5:
            await client.send_control("commit")
            await client.socket.send(bytes(2 * INPUT_HZ))
        await asyncio.sleep(draw.random())
        client.socket.transport.abort()


async def protocol_errors(settings: Settings, script: Script, draw: random.Random) -> None:
    """Send invalid messages: each is answered by an `error` event, and the conversation goes on."""
    async with paced_client(f"{settings.bridge.url}/ws/pcm16?{_options(draw)}") as client:
        await client.socket.send(script.speech[:INPUT_HZ].tobytes())
        invalid = draw.sample(INVALID_MESSAGES, 3)
        for message in invalid:
            await client.socket.send(message)
        for _ in invalid:
            await _wait_for_error(client)


async def _wait_for_error(client: PacedClient) -> None:
    while True:
        try:
            await client.receive(TIMEOUT_S)
        except DialogueError:
            return


async def realtime_protocol(settings: Settings, script: Script, draw: random.Random) -> None:
    """Request one response by OpenAI's Realtime protocol. Raises `DialogueError` for an `error` event."""
    url = f"{settings.bridge.url}/v1/realtime?model=qwen3-omni"
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": script.message}]}
    async with connect(url, max_size=None, proxy=None) as socket:
        await socket.send(json.dumps({"type": "conversation.item.create", "item": item}))
        await socket.send(json.dumps({"type": "response.create", "response": {"max_output_tokens": 40}}))
        kind = ""
        while kind != "response.done":
            event = json.loads(await asyncio.wait_for(socket.recv(), TIMEOUT_S))
            kind = event["type"]
            if kind == "error":
                raise DialogueError(event["error"]["message"], event["error"].get("code") or "")


CLIENTS: tuple[SoakClient, ...] = (
    speech, typed_messages, barge_in, lost_connection, protocol_errors, realtime_protocol,
)  # fmt: skip
