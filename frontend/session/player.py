"""The player of a call: the bridge's end of an audio track, if the events of a protocol carry no audio."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Cut(NamedTuple):
    """The point at which a response fell silent."""

    response_id: str
    heard_ms: int


class Player(Protocol):
    """Plays the audio of responses."""

    def play(self, response_id: str, pcm: bytes, is_last: bool) -> None:
        """Append audio of a response, PCM16 at 24 kHz."""

    def clear(self) -> Cut | None:
        """Drop the audio that waits; returns the response that was cut off, if there was one."""
