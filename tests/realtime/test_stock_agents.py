"""The `openai-agents` package, unmodified: typed and spoken turns, and an interruption."""

from __future__ import annotations

import asyncio
import os

from tests.conftest import Served
from tests.realtime.stock_client import CHANGE, CHUNK, ORDER, pcm24

os.environ["OPENAI_AGENTS_DISABLE_TRACING"] = "1"


def test_openai_agents_answers_text_and_speech_and_is_interrupted(served_barista: Served):
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
