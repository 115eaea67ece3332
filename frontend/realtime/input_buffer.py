"""The protocol's `input_audio_buffer`: a microphone's sound from the client's events to the clock that ticks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from frontend.audio.formats import AudioDecoder, AudioError
from frontend.realtime.clock import MAX_HELD_S, Clock
from frontend.realtime.events import RealtimeError

MIN_COMMIT_MS = 100


class InputBuffer:
    """Each commit and each `clear` ends a sound: nothing of it reaches the next."""

    def __init__(self, clock: Clock, kind: str):
        """`kind`: the format of the sound."""
        self._clock, self._kind = clock, kind
        self._microphone = AudioDecoder(kind)
        self._late_ms = self._microphone.delay_ms  # by so much is the engine's sound later than the client's own
        self.keeps_turn = False  # what was being said when detection was turned off is part of the next commit

    def use(self, kind: str) -> None:
        """Another format from here on, if it is another."""
        if kind != self._kind:
            self._kind = kind
            self._renew()

    def feed(self, audio: Any) -> bytes:
        """The PCM16 at 16 kHz of an event's base64. Raises `RealtimeError`."""
        if self._clock.holds and self._clock.held_ms >= MAX_HELD_S * 1000:
            message = f"{self._clock.held_ms} ms of sound wait, expected input_audio_buffer.commit or .clear"
            raise RealtimeError(message, code="input_audio_buffer_full")
        try:
            return self._microphone.feed(audio)
        except AudioError as error:
            raise RealtimeError(str(error), param="audio") from None

    def expect_sound(self, user_speaks: bool) -> None:
        """Raises `RealtimeError` where there is nothing to commit."""
        if self._clock.held_ms < MIN_COMMIT_MS and not user_speaks and not self.keeps_turn:
            raise RealtimeError(
                f"the buffer holds {self._clock.held_ms} ms of sound, expected at least {MIN_COMMIT_MS}",
                code="input_audio_buffer_commit_empty",
            )

    def commit(self, options: Mapping[str, Any]) -> None:
        """The user's turn ends here and asks for no response; `options` of turns hold after it."""
        rest = self._microphone.end()
        self._renew(said=bool(rest))  # a call's sound does not come through this microphone
        if self._clock.holds:
            self._clock.commit(rest, {} if self.keeps_turn else {"listen": True})
        else:  # it is told from the end of a turn that was detected
            self._clock.commit(rest, {}, {"turn": json.dumps({"create_response": False})})
            self._clock.ask(turn=json.dumps(options))
        self.keeps_turn = False

    def clear(self) -> None:
        """Forgets the sound that has not gone to the engine."""
        self._clock.clear()
        self._renew()
        self.keeps_turn = False

    def spoken_at_ms(self, at_ms: int) -> int:
        """A moment of the engine's input in the client's own sound."""
        return max(0, round(self._clock.spoken_ms(at_ms) - self._late_ms))

    def _renew(self, said: bool = False) -> None:
        """What follows is another sound; `said`: the rest of the one before has been taken, not dropped."""
        before, self._microphone = self._microphone, AudioDecoder(self._kind)
        self._late_ms += self._microphone.delay_ms - (0 if said else before.delay_ms)
