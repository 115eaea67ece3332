"""The clock of a client that streams its audio: a tick is complete when its samples have been received."""

from __future__ import annotations

from collections.abc import Iterator


class ClientClock:
    """Cuts a stream of PCM16 into ticks, independent of the client's frames."""

    def __init__(self, tick_bytes: int):
        self._tick_bytes = tick_bytes
        self._buffer = bytearray()  # less than a tick

    def feed(self, frame: bytes) -> Iterator[bytes]:
        """Yield the ticks that `frame` completes."""
        self._buffer += frame
        while len(self._buffer) >= self._tick_bytes:
            tick = bytes(self._buffer[: self._tick_bytes])
            del self._buffer[: self._tick_bytes]
            yield tick

    @property
    def is_open(self) -> bool:
        """True if a part of a tick is buffered."""
        return bool(self._buffer)

    @property
    def missing(self) -> int:
        """Bytes that complete the open tick."""
        return self._tick_bytes - len(self._buffer)

    def flush(self) -> bytes:
        """Return the buffered bytes, padded with silence to a whole tick."""
        tick = bytes(self._buffer).ljust(self._tick_bytes, b"\0")
        self._buffer.clear()
        return tick
