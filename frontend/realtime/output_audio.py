"""The output audio buffer of a call: what the bridge plays, and what was heard when it falls silent."""

from __future__ import annotations

from collections.abc import Callable

from contract.errors import ErrorCode
from frontend.realtime.events import RealtimeError
from frontend.realtime.items import Items, Truncation
from frontend.realtime.responses import Responses
from frontend.session.player import Player


class OutputAudio:
    """Without a player the client plays the events' audio, and all methods do nothing or refuse."""

    def __init__(self, player: Player | None, responses: Responses, items: Items, send: Callable[..., None]):
        self._player, self._responses, self._items, self._send = player, responses, items, send

    def stop(self) -> bool:
        """Stop the playback; return whether audio was left.

        The player knows what was heard, and the history keeps that much of the answer. Without a player the engine
        assumes that all emitted audio was heard.
        """
        cut, latest = self._player.clear() if self._player else None, self._responses.latest
        if cut and latest and latest.id == cut.response_id and latest.item:
            self._items.truncate(Truncation(latest.item, 0, cut.heard_ms))
        return cut is not None

    def clear(self) -> None:
        """Apply `output_audio_buffer.clear`. Raises `RealtimeError`."""
        if not self._player:
            raise RealtimeError("expected a call: here the client plays the audio", ErrorCode.INVALID_EVENT)
        has_other = self._responses.cancel_audible()
        if self.stop() or has_other:
            return
        if self._responses.latest is None:
            message = "expected a response that has been played, got none"
            raise RealtimeError(message, ErrorCode.OUTPUT_BUFFER_EMPTY)
        self._send({"type": "output_audio_buffer.cleared", "response_id": self._responses.latest.id})
