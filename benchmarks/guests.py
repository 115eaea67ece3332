"""Kinds of conversations as production has them: short, interrupted, cut off, mistaken, of both protocols."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable

import numpy as np
from websockets.asyncio.client import ClientConnection, connect

from benchmarks.dialogue import DialogueError, dialogue
from benchmarks.reference import LIMITS, Script
from config import Settings
from config.settings import INPUT_HZ

Guest = Callable[[Settings, Script, random.Random], Awaitable[None]]
WITHIN_S = 60.0
MISTAKES: tuple[str | bytes, ...] = (
    "not JSON", '{"type": "nonsense"}', b"odd", '{"type": "message"}', '{"type": "forget"}',
)  # fmt: skip


def _options(chance: random.Random, **more: object) -> str:
    chosen = {"seed": chance.randrange(2**31), "temperature": chance.choice((0, 0.9)), **LIMITS, **more}
    return "&".join(f"{name}={value}" for name, value in chosen.items())


def _url(settings: Settings, options: str) -> str:
    return f"{settings.bridge.url}/ws/pcm16?{options}"


async def _received(socket: ClientConnection) -> str | bytes:
    return await asyncio.wait_for(socket.recv(), WITHIN_S)


async def speaks(settings: Settings, script: Script, chance: random.Random) -> None:
    """Says a sentence whose end the server detects, hears the answer, and leaves politely."""
    async with dialogue(settings, _options(chance)) as talk:
        await talk.say(script.spoken)
        await talk.wait_for("answer_done", 0)


async def types(settings: Settings, script: Script, chance: random.Random) -> None:
    """Types one to three messages."""
    async with dialogue(settings, _options(chance, detection="manual")) as talk:
        for _ in range(chance.randint(1, 3)):
            place = len(talk.events)
            await talk.ask("message", text=script.typed)
            await talk.wait_for("answer_done", place)


async def interrupts(settings: Settings, script: Script, chance: random.Random) -> None:
    """Commits a turn, and types into its answer."""
    async with dialogue(settings, _options(chance, detection="manual")) as talk:
        await talk.say(script.spoken)
        await talk.ask("commit")
        begun = await talk.wait_for("answer_started", 0)
        await talk.say(np.zeros(chance.randrange(INPUT_HZ), np.int16))
        await talk.ask("message", text=script.typed)
        await talk.wait_for("answer_done", begun or 0)


async def vanishes(settings: Settings, script: Script, chance: random.Random) -> None:
    """Is cut off without a goodbye, within a second."""
    async with connect(_url(settings, _options(chance, detection="manual")), max_size=None, proxy=None) as socket:
        await socket.send(script.spoken[: chance.randrange(1, len(script.spoken))].tobytes())
        if chance.random() < 0.5:
            await socket.send(json.dumps({"type": "commit"}))
            await socket.send(bytes(2 * INPUT_HZ))
        await asyncio.sleep(chance.random())
        socket.transport.abort()


async def is_mistaken(settings: Settings, script: Script, chance: random.Random) -> None:
    """Sends what the protocol has no place for; each is answered by an error, and the conversation goes on."""
    async with connect(_url(settings, _options(chance)), max_size=None, proxy=None) as socket:
        await socket.send(script.spoken[:INPUT_HZ].tobytes())
        asked = chance.sample(MISTAKES, 3)
        for mistake in asked:
            await socket.send(mistake)
        errors = 0
        while errors < len(asked):
            message = await _received(socket)
            errors += isinstance(message, str) and json.loads(message)["type"] == "error"


async def uses_realtime(settings: Settings, script: Script, chance: random.Random) -> None:
    """Asks for one response by OpenAI's protocol. Raises `DialogueError` with an error's words."""
    url = f"{settings.bridge.url}/v1/realtime?model=qwen3-omni"
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": script.typed}]}
    async with connect(url, max_size=None, proxy=None) as socket:
        await socket.send(json.dumps({"type": "conversation.item.create", "item": item}))
        await socket.send(json.dumps({"type": "response.create", "response": {"max_output_tokens": 40}}))
        kind = ""
        while kind != "response.done":
            event = json.loads(await _received(socket))
            kind = event["type"]
            if kind == "error":
                raise DialogueError(event["error"]["message"], event["error"].get("code") or "")


GUESTS: tuple[Guest, ...] = (speaks, types, interrupts, vanishes, is_mistaken, uses_realtime)
