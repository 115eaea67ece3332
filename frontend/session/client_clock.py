"""Cuts a stream of PCM into ticks, however a client cut it into frames."""

from __future__ import annotations

from collections.abc import Iterator


class ClientClock:
    """Holds what is not yet a whole tick."""

    def __init__(self, tick_bytes: int):
        self._tick_bytes = tick_bytes
        self._held = bytearray()

    def feed(self, frame: bytes) -> Iterator[bytes]:
        """The ticks that `frame` completes."""
        self._held += frame
        while len(self._held) >= self._tick_bytes:
            tick = bytes(self._held[: self._tick_bytes])
            del self._held[: self._tick_bytes]
            yield tick

    @property
    def is_open(self) -> bool:
        """Whether something is held."""
        return bool(self._held)

    @property
    def missing(self) -> int:
        """Bytes to a whole tick."""
        return self._tick_bytes - len(self._held)

    def flush(self) -> bytes:
        """What is held, and silence to a whole tick: the last one, in which the pipeline's delay is heard out."""
        tick = bytes(self._held).ljust(self._tick_bytes, b"\0")
        self._held.clear()
        return tick
