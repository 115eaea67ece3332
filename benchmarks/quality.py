"""Turn taking and sound of conversations: recordings of users, sent at the pace of a microphone.

Turns are measured as in Full-Duplex-Bench, on two clocks: the model's, on which a tick's response is played as soon as
the tick has been spoken, and the client's, on which the response is played when it has arrived.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import soundfile

from benchmarks.paced_client import paced_client
from benchmarks.quality_cases import PAUSE, TURN, Case
from benchmarks.server import Counters
from benchmarks.sound_quality import SoundQuality, answers_in, sound_quality
from config import Settings
from config.settings import OUTPUT_HZ
from training.judges.dialogue import run_concurrently
from training.judges.recogniser import Recogniser

MIN_TURN_S = 1.0  # shorter output is a backchannel, as in Full-Duplex-Bench
SLOT_TIMEOUT_S = 5.0  # time that the previous conversation may need to free its slot
SETTLE_S = 2.0  # time for the last responses after the last sample was sent


@dataclass(frozen=True)
class Recording:
    """The server's side of one conversation."""

    case: Case
    ticks: list[np.ndarray]  # int16 at 24 kHz
    arrivals_s: list[float]  # arrival of each tick, after the first sample was spoken
    tick_s: float

    def output(self, by_arrival: bool) -> np.ndarray:
        """Return what a loudspeaker plays, int16 at 24 kHz, as long as the user's recording."""
        played = np.zeros(round(self.case.seconds * OUTPUT_HZ), np.int16)
        free_s = 0.0
        for number, (tick, arrival_s) in enumerate(zip(self.ticks, self.arrivals_s, strict=True)):
            free_s = max(free_s, arrival_s if by_arrival else (number + 1) * self.tick_s)
            begin = round(free_s * OUTPUT_HZ)
            samples = tick[: max(0, len(played) - begin)]
            played[begin : begin + len(samples)] = samples
            free_s += len(tick) / OUTPUT_HZ
        return played


@dataclass(frozen=True)
class Turns:
    """The turns of one conversation on one of the two clocks; None: the recording's task does not measure it."""

    task: str
    took_turn: bool  # at least MIN_TURN_S of output; of an interruption's task, after the interruption
    kept_pause: bool | None  # no output from the pause's begin on
    response_s: float | None  # time from the end of the turn or interruption to the answer's first sound
    stop_s: float | None  # time from the begin of the interruption to the end of the old answer
    overlapped: bool | None  # the interruption met an answer


@dataclass(frozen=True)
class Load:
    """Results of all recordings with `conversations` of them at once."""

    conversations: int
    real_time_factor: float  # seconds of engine ticks in a second, shared by all conversations
    late_share: float  # share of ticks that arrived after the next one had been spoken
    sound: SoundQuality
    model: list[Turns]
    arrival: list[Turns]


def bench_quality(
    settings: Settings, cases: Sequence[Case], conversations: Sequence[int]
) -> list[tuple[Load, list[Recording]]]:
    """Send every recording, for each number of conversations at once. Raises `DialogueError`."""

    async def hold(case: Case) -> Recording:
        return await _converse(settings, case)

    results = []
    for count in conversations:
        before_s, begun_s = _engine_seconds(settings), time.monotonic()
        recordings = list(asyncio.run(run_concurrently(cases, hold, count, f"{count} at once")))
        duration_s = time.monotonic() - begun_s
        busy_s = _engine_seconds(settings) - before_s
        late = [
            arrival_s > (number + 2) * each.tick_s
            for each in recordings
            for number, arrival_s in enumerate(each.arrivals_s)
        ]
        load = Load(
            count,
            busy_s / duration_s,
            float(np.mean(late)) if late else 0.0,
            sound_quality([each.ticks for each in recordings]),
            [turns(each, by_arrival=False) for each in recordings],
            [turns(each, by_arrival=True) for each in recordings],
        )
        results.append((load, recordings))
    return results


def _engine_seconds(settings: Settings) -> float:
    return Counters.read(settings).values["sca_tick_seconds_sum", ""]


async def _converse(settings: Settings, case: Case) -> Recording:
    tick_s = settings.audio.tick_ms / 1000
    expected = int(case.seconds / tick_s)
    ticks: list[np.ndarray] = []
    arrivals_s: list[float] = []
    timeout_s = case.seconds + SETTLE_S
    async with paced_client(f"{settings.bridge.url}/ws/pcm16", SLOT_TIMEOUT_S) as client:
        await client.receive(timeout_s)  # the conversation is open
        begin_s = time.monotonic()
        sending = asyncio.create_task(client.send_audio(case.pcm, begin_s))
        try:
            while len(ticks) < expected:
                message = await client.receive(timeout_s)
                if isinstance(message, np.ndarray):
                    arrivals_s.append(time.monotonic() - begin_s)
                    ticks.append(message)
        finally:
            sending.cancel()
    return Recording(case, ticks, arrivals_s, tick_s)


def turns(recording: Recording, by_arrival: bool) -> Turns:
    """Measure the turns from the output's audio only."""
    case = recording.case
    spans = answers_in(recording.output(by_arrival))
    kept = response_s = stop_s = overlapped = None
    if case.task == PAUSE:
        kept = not any(end_s > case.begin_s for _, end_s in spans)
    if case.task == TURN:
        response_s = next((begin_s - case.begin_s for begin_s, _ in spans if begin_s >= case.begin_s), None)
    if case.is_interruption:
        interrupted = next(((b, e) for b, e in spans if b <= case.begin_s < e), None)
        overlapped = interrupted is not None
        stop_s = interrupted[1] - case.begin_s if interrupted else None
        response_s = next((b - case.end_s for b, e in spans if b >= case.begin_s and e > case.end_s), None)
        spans = [(b, e) for b, e in spans if b >= case.begin_s]
    took_turn = bool(spans) and spans[-1][1] - spans[0][0] >= MIN_TURN_S
    return Turns(case.task, took_turn, kept, response_s, stop_s, overlapped)


def write_outputs(recordings: Sequence[Recording]) -> None:
    """Write `output.wav` and `output.json` next to each input, as Full-Duplex-Bench's `evaluate.py` reads them."""
    recogniser = Recogniser()
    for each in recordings:
        case, audio = each.case, each.output(by_arrival=True)
        soundfile.write(case.output(".wav"), audio, OUTPUT_HZ, subtype="PCM_16")
        after_s = case.end_s if case.is_interruption else 0.0
        chunks = []
        for begin_s, end_s in answers_in(audio):
            if end_s <= after_s:
                continue
            begin_s = max(begin_s, after_s)
            answer = audio[round(begin_s * OUTPUT_HZ) : round(end_s * OUTPUT_HZ)]
            chunks += [
                {"text": word.text, "timestamp": [begin_s + word.begin_s, begin_s + word.end_s]}
                for word in recogniser.words(answer, OUTPUT_HZ)
            ]
        transcript = {"text": " ".join(str(chunk["text"]) for chunk in chunks), "chunks": chunks}
        case.output(".json").write_text(json.dumps(transcript, indent=1), encoding="utf-8")
