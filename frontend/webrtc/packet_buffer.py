"""A jitter buffer for audio."""

from __future__ import annotations

from collections.abc import Callable

from aiortc.rtp import RtpPacket
from aiortc.utils import uint16_add, uint16_gt

HELD_PACKETS = 3  # 60 ms: a packet may arrive behind this number of later ones
LATE_PACKETS = 500  # a packet further behind begins a new stream of numbers


class PacketBuffer:
    """Releases packets in order, each as soon as no earlier one is missing; a lost packet delays `HELD_PACKETS` others.

    aiortc's own jitter buffer is made for video: it waits 320 ms for a lost packet, and then drops the packets that
    follow.
    """

    def __init__(self, release: Callable[[RtpPacket], None]) -> None:
        self._release = release
        self._waiting: dict[int, RtpPacket] = {}  # packets by sequence number
        self._last: int | None = None  # sequence number of the latest packet that was released

    def add(self, packet: RtpPacket) -> tuple[bool, None]:
        """Release the packets that are due; returns (False, None): aiortc has no frame to decode."""
        behind = LATE_PACKETS if self._last is None else uint16_add(self._last, -packet.sequence_number)
        if behind >= LATE_PACKETS:  # else a later packet was released in its place
            self._waiting[packet.sequence_number] = packet
        while self._waiting:
            number = self._oldest
            if not self._is_next(number) and len(self._waiting) <= HELD_PACKETS:
                break
            self._last = number
            self._release(self._waiting.pop(number))
        return False, None

    def _is_next(self, number: int) -> bool:
        return self._last is None or number == uint16_add(self._last, 1)

    @property
    def _oldest(self) -> int:
        first, *others = self._waiting
        for number in others:
            first = number if uint16_gt(first, number) else first
        return first
