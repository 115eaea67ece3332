"""Pipecat's OpenAI Realtime service, unmodified: `python pipecat_client.py ws://127.0.0.1:8000/v1/realtime`."""

import asyncio
import subprocess
import sys

from loguru import logger
from pipecat.frames.frames import InputAudioRawFrame, InterruptionFrame, LLMRunFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService
from pipecat.transports.base_output import BaseOutputTransport
from pipecat.transports.base_transport import TransportParams
from pipecat.workers.runner import WorkerRunner

RATE, FRAME_S, FRAME_BYTES, WAV_HEADER = 16_000, 0.02, 640, 44


def frames_of(words: str) -> list[bytes]:
    """Return a sentence by flite at 16 kHz, which the service resamples, in frames of 20 ms."""
    command = ["flite", "-voice", "rms", "-t", words, "-o", "/dev/stdout"]
    wav = subprocess.run(command, capture_output=True, check=True).stdout
    return [wav[at : at + FRAME_BYTES] for at in range(WAV_HEADER, len(wav) - FRAME_BYTES, FRAME_BYTES)]


async def until(is_so) -> None:
    async with asyncio.timeout(20):
        while not is_so():
            await asyncio.sleep(FRAME_S)


class Loudspeaker(BaseOutputTransport):
    """Output that discards audio at the pace of a real loudspeaker."""

    played_s, interruptions = 0.0, 0

    async def start(self, frame) -> None:
        await self.set_transport_ready(frame)

    async def write_audio_frame(self, frame) -> bool:
        self.played_s += frame.num_frames / frame.sample_rate
        await asyncio.sleep(frame.num_frames / frame.sample_rate)
        return True

    async def process_frame(self, frame, direction) -> None:
        self.interruptions += isinstance(frame, InterruptionFrame)
        await super().process_frame(frame, direction)


async def converse(base_url: str) -> None:
    llm = OpenAIRealtimeLLMService(api_key="none", base_url=base_url)
    context = LLMContext([{"role": "user", "content": "I would like a latte please"}])
    user, assistant = LLMContextAggregatorPair(context)
    speaker = Loudspeaker(TransportParams(audio_out_enabled=True))
    worker = PipelineWorker(Pipeline([user, llm, speaker, assistant]))
    runner, queued, answers = WorkerRunner(handle_sigint=False), [], {}

    @llm.event_handler("on_conversation_item_updated")
    async def note(_, item_id: str, item) -> None:
        if item and item.role == "assistant":
            answers[item_id] = item

    async def microphone() -> None:
        due_s = (clock := asyncio.get_running_loop().time)()
        while True:
            frame = queued.pop(0) if queued else bytes(FRAME_BYTES)
            await worker.queue_frame(InputAudioRawFrame(audio=frame, sample_rate=RATE, num_channels=1))
            due_s += FRAME_S
            await asyncio.sleep(due_s - clock())

    async def answer(count: int) -> tuple[str, str, str]:
        await until(lambda: len(answers) == count)
        return (item := list(answers.values())[-1]).id, item.status, item.content[0].transcript

    async def talk() -> None:
        await worker.queue_frame(LLMRunFrame())  # bots greet with the answer to a typed turn
        assert (await answer(1))[1:] == ("completed", "Okay, a latte. What size would you like?")
        await asyncio.sleep(1)  # the end of the answer is played
        listening, before_s, interruptions = asyncio.create_task(microphone()), speaker.played_s, speaker.interruptions
        queued.extend(frames_of("Can I get a medium dark roast latte with soy milk?"))
        await until(lambda: speaker.played_s - before_s > 1)
        queued.extend(frames_of("Make it large."))  # while the answer plays
        interrupted, status, text = await answer(2)
        assert status == "incomplete"
        assert text
        await until(lambda: speaker.interruptions == interruptions + 2)  # one at the start of each turn
        before_s = speaker.played_s
        _, status, text = await answer(3)
        assert status == "completed"
        assert "large" in text
        await until(lambda: context.messages[-1] == {"role": "assistant", "content": text})
        assert speaker.played_s - before_s > 2
        heard = (await llm.retrieve_conversation_item(interrupted)).content[0].transcript
        assert heard
        assert context.messages[-2]["content"].startswith(heard)
        listening.cancel()

    await runner.add_workers(worker)
    running = asyncio.create_task(runner.run())
    try:
        await talk()
    finally:
        await worker.cancel()
        await running


if __name__ == "__main__":
    problems: list[str] = []
    logger.remove()
    logger.add(problems.append, level="WARNING")
    asyncio.run(asyncio.wait_for(converse(sys.argv[1]), 60))
    assert not problems, problems
