"""How conversations sound and take turns: recordings of users played at the pace of a microphone.

Turns are measured as in Full-Duplex-Bench, in two times: the model's, in which a tick's answer is there the moment the
tick has been spoken, and the client's, in which it is played once it has arrived.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus

import numpy as np
import soundfile
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from benchmarks.dialogue import DialogueError, at_once
from benchmarks.quality_cases import INTERRUPTION, PAUSE, TURN, Case
from benchmarks.server import Counters
from benchmarks.sound_quality import SoundQuality, answers_in, sound_quality
from config import Settings
from config.settings import INPUT_HZ, OUTPUT_HZ

FRAME = INPUT_HZ // 50  # samples that a microphone sends at once, 20 ms
TURN_S = 1.0  # of sound: less is a backchannel, as in Full-Duplex-Bench
FREE_WITHIN_S = 5.0
SETTLES_S = 2.0  # after the last sample was sent


@dataclass(frozen=True)
class Heard:
    """What came back in one conversation."""

    case: Case
    ticks: list[np.ndarray]  # int16 at 24 kHz
    arrived_s: list[float]  # each, after the first sample was spoken
    tick_s: float

    def sound(self, by_arrival: bool) -> np.ndarray:
        """What a loudspeaker plays, int16 at 24 kHz, as long as the recording."""
        played = np.zeros(round(self.case.seconds * OUTPUT_HZ), np.int16)
        free_s = 0.0
        for number, (tick, arrived_s) in enumerate(zip(self.ticks, self.arrived_s, strict=True)):
            free_s = max(free_s, arrived_s if by_arrival else (number + 1) * self.tick_s)
            begin = round(free_s * OUTPUT_HZ)
            part = tick[: max(0, len(played) - begin)]
            played[begin : begin + len(part)] = part
            free_s += len(tick) / OUTPUT_HZ
        return played


@dataclass(frozen=True)
class Turns:
    """One conversation's turns, in one of the two times. What a recording does not ask for is None."""

    task: str
    took_turn: bool  # at least a second of sound, after the interruption where there is one
    kept_pause: bool | None  # nothing was said from the pause's begin on
    response_s: float | None  # from the end of the turn or of the interruption to the answer's first sound
    stop_s: float | None  # from the begin of the interruption to the end of what was being said
    overlapped: bool | None  # an answer was being said when it was interrupted


@dataclass(frozen=True)
class Load:
    """All recordings, so many at once."""

    conversations: int
    real_time_factor: float  # seconds of the engine's ticks a second, shared by all
    late_share: float  # of ticks that arrived later than the next one had been spoken
    sound: SoundQuality
    model: list[Turns]
    arrival: list[Turns]


def bench_quality(
    settings: Settings, cases: Sequence[Case], conversations: Sequence[int]
) -> list[tuple[Load, list[Heard]]]:
    """Every recording, for each number of conversations at once. Raises `DialogueError` with an error's words."""
    found = []
    for count in conversations:
        before, begun_s = Counters.read(settings), time.monotonic()

        async def hold(case: Case) -> Heard:
            return await _converse(settings, case)

        heard = list(asyncio.run(at_once(cases, hold, count, f"{count} at once")))
        took_s = time.monotonic() - begun_s
        spent_s = _tick_seconds(Counters.read(settings)) - _tick_seconds(before)
        late = [
            arrived_s > (number + 2) * each.tick_s for each in heard for number, arrived_s in enumerate(each.arrived_s)
        ]
        found.append(
            (
                Load(
                    count,
                    spent_s / took_s,
                    float(np.mean(late)) if late else 0.0,
                    sound_quality([each.ticks for each in heard]),
                    [turns(each, by_arrival=False) for each in heard],
                    [turns(each, by_arrival=True) for each in heard],
                ),
                heard,
            )
        )
    return found


def _tick_seconds(counters: Counters) -> float:
    return counters.values["sca_tick_seconds_sum", ""]


async def _converse(settings: Settings, case: Case) -> Heard:
    tick_s = settings.audio.tick_ms / 1000
    wanted = int(case.seconds / tick_s)
    ticks: list[np.ndarray] = []
    arrived_s: list[float] = []
    url = f"{settings.bridge.url}/ws/pcm16"
    socket = await _connected(url)
    async with socket:
        opened = json.loads(await socket.recv())
        if opened["type"] == "error":
            raise DialogueError(opened["message"], opened["code"])
        begin_s = time.monotonic()
        speaking = asyncio.create_task(_speak(socket, case.pcm, begin_s))
        try:
            while len(ticks) < wanted:
                message = await asyncio.wait_for(socket.recv(), case.seconds + SETTLES_S)
                if isinstance(message, bytes):
                    arrived_s.append(time.monotonic() - begin_s)
                    ticks.append(np.frombuffer(message, np.int16))
                elif (event := json.loads(message))["type"] == "error":
                    raise DialogueError(event["message"], event["code"])
        finally:
            speaking.cancel()
    return Heard(case, ticks, arrived_s, tick_s)


async def _connected(url: str) -> ClientConnection:
    """A WebSocket; the place of the conversation before it may not be free yet. Raises `InvalidStatus`."""
    until_s = time.monotonic() + FREE_WITHIN_S
    while True:
        try:
            return await connect(url, max_size=None, proxy=None)
        except InvalidStatus as refusal:
            if refusal.response.status_code != HTTPStatus.SERVICE_UNAVAILABLE or time.monotonic() > until_s:
                raise
            await asyncio.sleep(0.1)


async def _speak(socket: ClientConnection, pcm: np.ndarray, begin_s: float) -> None:
    for start in range(0, len(pcm), FRAME):
        part = pcm[start : start + FRAME]
        await asyncio.sleep(max(0.0, begin_s + (start + len(part)) / INPUT_HZ - time.monotonic()))
        await socket.send(part.tobytes())


def turns(heard: Heard, by_arrival: bool) -> Turns:
    """Who spoke when, from the sound alone."""
    case = heard.case
    spans = answers_in(heard.sound(by_arrival))
    kept = response_s = stop_s = overlapped = None
    if case.task == PAUSE:
        kept = not any(end_s > case.begin_s for _, end_s in spans)
    if case.task == TURN:
        response_s = next((begin_s - case.begin_s for begin_s, _ in spans if begin_s >= case.begin_s), None)
    if case.task == INTERRUPTION:
        cut = next(((b, e) for b, e in spans if b <= case.begin_s < e), None)
        overlapped = cut is not None
        stop_s = cut[1] - case.begin_s if cut else None
        response_s = next((b - case.end_s for b, e in spans if b >= case.begin_s and e > case.end_s), None)
        spans = [(b, e) for b, e in spans if b >= case.begin_s]
    took = bool(spans) and spans[-1][1] - spans[0][0] >= TURN_S
    return Turns(case.task, took, kept, response_s, stop_s, overlapped)


def write_outputs(heard: Sequence[Heard]) -> None:
    """`output.wav` and `output.json` beside each recording, as Full-Duplex-Bench's `evaluate.py` reads them."""
    from benchmarks.recogniser import Recogniser

    recogniser = Recogniser()
    for each in heard:
        case, sound = each.case, each.sound(by_arrival=True)
        soundfile.write(case.output(".wav"), sound, OUTPUT_HZ, subtype="PCM_16")
        after_s = case.end_s if case.task == INTERRUPTION else 0.0
        chunks = []
        for begin_s, end_s in answers_in(sound):
            if end_s <= after_s:
                continue
            begin_s = max(begin_s, after_s)
            part = sound[round(begin_s * OUTPUT_HZ) : round(end_s * OUTPUT_HZ)]
            chunks += [
                {"text": word.text, "timestamp": [begin_s + word.begin_s, begin_s + word.end_s]}
                for word in recogniser.words(part, OUTPUT_HZ)
            ]
        told = {"text": " ".join(str(chunk["text"]) for chunk in chunks), "chunks": chunks}
        case.output(".json").write_text(json.dumps(told, indent=1), encoding="utf-8")
