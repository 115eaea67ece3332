"""The sound of a WebRTC call: the client's track to PCM16 at 16 kHz, and the voice as a track of 20 ms frames."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from fractions import Fraction

import numpy as np
from aiortc import MediaStreamTrack, RTCRtpReceiver
from aiortc.jitterbuffer import JitterFrame
from aiortc.mediastreams import MediaStreamError
from aiortc.rtp import RtpPacket
from aiortc.utils import uint16_add, uint16_gt
from av import AudioFrame

from config.settings import INPUT_HZ, OUTPUT_HZ
from frontend.audio.pcm import SAMPLE_BYTES
from frontend.audio.sound import Resampler
from frontend.realtime.conversation import Cut

OPUS_HZ = 48_000
FRAME_S = 0.02
FRAME_BYTES = int(FRAME_S * OUTPUT_HZ) * SAMPLE_BYTES
HELD_PACKETS = 3  # 60 ms, in which a packet may be overtaken
LATE_PACKETS = 500  # behind what was given, past which it begins to count anew
CUSHION_S = 0.06  # that the voice waits at first, so that a later tick of it may come late
MAX_LOST_S = 2.0  # of lost packets, that silence stands for; where more is missing the client's clock has jumped
LATE_S = 0.2  # that a frame may be late before the track's clock begins anew


class PacketBuffer:
    """Puts packets in order, and gives each as soon as nothing before it is missing; what is lost holds up no more than
    `HELD_PACKETS`.

    aiortc's own is made for pictures: it waits 320 ms for a lost packet, and then drops what came behind it.
    """

    def __init__(self, give: Callable[[RtpPacket], None]) -> None:
        self._give = give
        self._held: dict[int, RtpPacket] = {}  # by sequence number
        self._last: int | None = None  # sequence number of the latest that was given

    def add(self, packet: RtpPacket) -> tuple[bool, None]:
        """Takes a packet and gives those that are due. What aiortc gets is that nothing is left for it to do."""
        behind = LATE_PACKETS if self._last is None else uint16_add(self._last, -packet.sequence_number)
        if behind >= LATE_PACKETS:  # else what came instead was given already
            self._held[packet.sequence_number] = packet
        while self._held:
            number = self._oldest
            if not self._is_next(number) and len(self._held) <= HELD_PACKETS:
                break
            self._last = number
            self._give(self._held.pop(number))
        return False, None

    def _is_next(self, number: int) -> bool:
        return self._last is None or number == uint16_add(self._last, 1)

    @property
    def _oldest(self) -> int:
        first, *others = self._held
        for number in others:
            first = number if uint16_gt(first, number) else first
        return first


def order_packets(receiver: RTCRtpReceiver) -> None:
    """Gives a receiver of sound a `PacketBuffer`; aiortc has no setting for it, nor takes two packets at a time."""
    inner = vars(receiver)

    def decode(packet: RtpPacket) -> None:
        data = packet._data  # type: ignore[attr-defined]
        if data:  # else the decoder would take it for the end
            codec = inner["_RTCRtpReceiver__codecs"][packet.payload_type]
            timestamp = inner["_RTCRtpReceiver__timestamp_mapper"].map(packet.timestamp)
            inner["_RTCRtpReceiver__decoder_queue"].put((codec, JitterFrame(data, timestamp)))

    inner["_RTCRtpReceiver__jitter_buffer"] = PacketBuffer(decode)


async def heard(track: MediaStreamTrack) -> AsyncIterator[bytes]:
    """PCM16 at 16 kHz of a track that is received; lost packets are silence, so that time goes on."""
    resampler, due = Resampler(OPUS_HZ, INPUT_HZ, at_once=True), None
    while True:
        try:
            frame = await track.recv()
        except MediaStreamError:  # it has ended
            return
        assert isinstance(frame, AudioFrame)
        channels = frame.to_ndarray().reshape(-1, len(frame.layout.channels)).astype(np.float32)
        samples = channels @ np.full(channels.shape[1], 1 / channels.shape[1], np.float32)
        lost = 0 if due is None or frame.pts is None else frame.pts - due
        if 0 < lost <= MAX_LOST_S * OPUS_HZ:
            samples = np.concatenate([np.zeros(lost, np.float32), samples])
        if frame.pts is not None:
            due = frame.pts + frame.samples
        if pcm := resampler.feed(samples).tobytes():
            yield pcm


class Loudspeaker(MediaStreamTrack):
    """The voice of a call. The client has no buffer of its own to empty: what is not sent is not heard."""

    kind = "audio"

    def __init__(self, tell: Callable[..., None]):
        """`tell` sends the protocol's events of an output buffer."""
        super().__init__()
        self._tell = tell
        self._due: deque[tuple[str, bytes | None]] = deque()  # a response's id with 20 ms of it, or its end
        self._rest = b""  # less than a frame
        self._playing = ""  # the response that is heard
        self._played = 0  # frames of it
        self._cleared = ""  # the latest that is not to be heard any more
        self._plays_at_s = 0.0  # when the first frame of a voice is due
        self._next_s = 0.0  # when the next frame is due, on the loop's clock
        self._sent = 0  # samples

    def play(self, response_id: str, pcm: bytes, is_last: bool) -> None:
        """More of a response's sound, PCM16 at 24 kHz; with the last the rest of a frame is filled up with silence.

        Of a response that was cleared nothing more is played.
        """
        if response_id == self._cleared:
            return
        if not self._due and not self._playing:
            self._plays_at_s = self._now() + CUSHION_S
        data = self._rest + pcm
        if is_last:
            data = data.ljust(-(-len(data) // FRAME_BYTES) * FRAME_BYTES, b"\0")
        whole = len(data) // FRAME_BYTES * FRAME_BYTES
        self._rest = data[whole:]
        for start in range(0, whole, FRAME_BYTES):
            self._due.append((response_id, data[start : start + FRAME_BYTES]))
        if is_last:
            self._due.append((response_id, None))

    def clear(self) -> Cut | None:
        """Nothing more is played; what of which response was, or None where there was nothing to play."""
        response_id = self._playing or (self._due[0][0] if self._due else "")
        played = self._played if self._playing else 0
        self._due.clear()
        self._rest, self._playing = b"", ""
        if not response_id:
            return None
        self._cleared = response_id
        self._say("cleared", response_id)
        return Cut(response_id, round(played * FRAME_S * 1000))

    async def recv(self) -> AudioFrame:
        """The next 20 ms, when they are due: the voice, or silence."""
        now = self._now()
        if now - self._next_s > LATE_S:
            self._next_s = now
        await asyncio.sleep(self._next_s - now)
        self._next_s += FRAME_S
        frame = AudioFrame("s16", "mono", FRAME_BYTES // SAMPLE_BYTES)
        frame.planes[0].update(self._take())
        frame.sample_rate, frame.time_base, frame.pts = OUTPUT_HZ, Fraction(1, OUTPUT_HZ), self._sent
        self._sent += frame.samples
        return frame

    def _take(self) -> bytes:
        while self._due and (self._playing or self._now() >= self._plays_at_s):
            response_id, frame = self._due.popleft()
            if frame is None:
                if self._playing:
                    self._say("stopped", response_id)
                self._playing = ""
                continue
            if self._playing != response_id:
                if self._playing:
                    self._say("stopped", self._playing)
                self._playing, self._played = response_id, 0
                self._say("started", response_id)
            self._played += 1
            return frame
        return bytes(FRAME_BYTES)

    def _say(self, what: str, response_id: str) -> None:
        self._tell({"type": f"output_audio_buffer.{what}", "response_id": response_id})

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
