"""LiveKit's OpenAI plugin, unmodified, without a room: `python livekit_client.py http://127.0.0.1:8000/v1`."""

import asyncio
import logging
import subprocess
import sys

from livekit import rtc
from livekit.agents import llm
from livekit.plugins import openai

RATE, SAMPLES, FRAME_S, WAV_HEADER = 16_000, 320, 0.02, 44


def frames_of(words: str) -> list[rtc.AudioFrame]:
    """Return a sentence by flite at 16 kHz, which the plugin resamples, in frames of 20 ms."""
    command = ["flite", "-voice", "rms", "-t", words, "-o", "/dev/stdout"]
    wav = subprocess.run(command, capture_output=True, check=True).stdout
    starts = range(WAV_HEADER, len(wav) - SAMPLES * 2, SAMPLES * 2)
    return [rtc.AudioFrame(wav[at : at + SAMPLES * 2], RATE, 1, SAMPLES) for at in starts]


class Caller:
    """Session with an open microphone, and the events and answers that the session has received."""

    def __init__(self, session: openai.realtime.RealtimeSession):
        self.session = session
        self.received_s = 0.0  # audio of the latest answer, in seconds
        self.queued: list[rtc.AudioFrame] = []
        self.events: list[dict] = []  # events of the server, in the order received
        self.generations: asyncio.Queue[llm.GenerationCreatedEvent] = asyncio.Queue()
        self.speech = asyncio.Event()
        session.on("openai_server_event_received", self.events.append)
        session.on("generation_created", self.generations.put_nowait)
        session.on("input_speech_started", lambda _: self.speech.set())

    async def microphone(self) -> None:
        due_s = (clock := asyncio.get_running_loop().time)()
        while True:
            self.session.push_audio(self.queued.pop(0) if self.queued else rtc.AudioFrame.create(RATE, 1, SAMPLES))
            due_s += FRAME_S
            await asyncio.sleep(due_s - clock())

    async def answer(self, generation: llm.GenerationCreatedEvent) -> tuple[str, str, tuple[str, str | None]]:
        """Receive an answer to its end; return the item's id, the text, the status and its reason."""
        self.received_s = 0.0
        message = await anext(generation.message_stream)
        assert await message.modalities == ["audio", "text"]
        async for frame in message.audio_stream:
            self.received_s += frame.duration
        text = "".join([part async for part in message.text_stream])
        assert not [another async for another in generation.message_stream]  # the stream ends with the response
        ends = [event["response"] for event in self.events if event["type"] == "response.done"]
        end = next(response for response in ends if response["id"] == generation.response_id)
        return message.message_id, text, (end["status"], end["status_details"].get("reason"))


async def converse(base_url: str) -> None:
    model = openai.realtime.RealtimeModel(base_url=base_url, api_key="none")
    caller = Caller(session := model.session())
    listening = asyncio.create_task(caller.microphone())
    # A spoken turn is answered, and the answer is interrupted by the next turn.
    caller.queued += frames_of("Can I get a medium dark roast latte with soy milk?")
    first = asyncio.create_task(caller.answer(await caller.generations.get()))
    while caller.received_s < 1:
        await asyncio.sleep(FRAME_S)
    caller.speech.clear()
    caller.queued += frames_of("Make it large.")
    await caller.speech.wait()
    session.interrupt()  # LiveKit's agent does the same now; the server has already ended the answer
    item, text, end = await first
    assert text.startswith("Okay")
    assert end == ("cancelled", "turn_detected")
    session.truncate(message_id=item, modalities=["audio"], audio_end_ms=900)
    # The second turn is answered in full.
    _, text, end = await caller.answer(await caller.generations.get())
    assert end == ("completed", None)
    assert "large" in text
    assert caller.received_s > 2
    assert [event["item_id"] for event in caller.events if event["type"] == "conversation.item.truncated"] == [item]
    # The third turn is typed; the program requests its answer and interrupts the answer.
    history = session.chat_ctx.copy()
    history.add_message(role="user", content="I would like a small mocha please")
    await session.update_chat_ctx(history)
    third = await session.generate_reply()
    assert third.user_initiated
    asyncio.get_running_loop().call_later(1.0, session.interrupt)
    assert (await caller.answer(third))[2] == ("cancelled", "client_cancelled")
    assert [message.role for message in session.chat_ctx.items] == ["user", "assistant"] * 3
    listening.cancel()
    await session.aclose()
    await model.aclose()


if __name__ == "__main__":
    problems: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: problems.append(record.getMessage())
    logging.getLogger("livekit").addHandler(handler)
    asyncio.run(asyncio.wait_for(converse(sys.argv[1]), 60))
    assert not problems, problems
