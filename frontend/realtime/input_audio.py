"""The client's input audio buffer: from the microphone to the clock, and from the engine's times to the client's."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import Any

from contract.controls import Controls
from contract.errors import ErrorCode
from contract.events import SpeechStarted, SpeechStopped
from frontend.audio.formats import AudioDecoder, AudioError
from frontend.realtime.engine_options import EngineOptions
from frontend.realtime.events import Event, RealtimeError, new_id
from frontend.realtime.session import Session
from frontend.session.server_clock import MAX_HELD_S, ServerClock
from frontend.tick import TickIn

MIN_COMMIT_MS = 100
MAX_HELD_MS = MAX_HELD_S * 1000


class InputMode(Enum):
    """The use of appended audio."""

    DETECTED = auto()  # audio is sent; the engine detects turns
    CONTINUED = auto()  # audio is sent: detection was turned off during speech, and the engine has not applied that
    KEPT = auto()  # audio waits for `commit`, which also ends the turn that the engine has kept since then
    MANUAL = auto()  # audio waits for `commit`


HOLDS = {InputMode.KEPT, InputMode.MANUAL}
KEEPS_TURN = {InputMode.CONTINUED, InputMode.KEPT}


class InputAudio:
    """Each commit and each clear ends a recording: the decoder's rest does not reach the next one."""

    def __init__(self, clock: ServerClock, session: Session, options: EngineOptions):
        self._clock, self._session, self._options = clock, session, options
        self._format = session.format("input")
        self._decoder = AudioDecoder(self._format)
        self._delay_ms = self._decoder.delay_ms  # delay of the engine's audio behind the client's
        self._mode = InputMode.DETECTED
        self._clears = 0  # `clear` controls that the engine has not applied
        self._speech_item: str | None = None  # id of the item that the user's speech will be
        self._stopped_ms = 0  # end of the previous speech: the next one starts no earlier
        self.user_speaks = False

    @property
    def holds(self) -> bool:
        """True if audio waits for `commit`."""
        return self._mode in HOLDS

    @property
    def is_open(self) -> bool:
        """True while the user speaks, or the engine keeps what the user has spoken."""
        return self.user_speaks or self._mode in KEEPS_TURN

    def follow_session(self, is_responding: bool) -> None:
        """Follow a change of format and detection; speech during a response is not kept."""
        if self._session.format("input") != self._format:
            self._format = self._session.format("input")
            self._renew()
        if self._session.detection:
            self._mode = InputMode.DETECTED
        elif self._mode is InputMode.DETECTED:
            is_kept = self.user_speaks and not is_responding
            self._mode = InputMode.CONTINUED if is_kept else InputMode.MANUAL

    def decode(self, audio: Any) -> bytes:
        """Return the PCM16 at 16 kHz of an event's base64. Raises `RealtimeError`."""
        if self.holds and self._clock.held_ms >= MAX_HELD_MS:
            message = f"expected input_audio_buffer.commit or .clear: {self._clock.held_ms} ms of audio wait"
            raise RealtimeError(message, ErrorCode.INPUT_BUFFER_FULL)
        return _decode(self._decoder, audio)

    def decode_whole(self, audio: Sequence[Any]) -> bytes:
        """Return the PCM16 at 16 kHz of an item's audio, which is complete. Raises `RealtimeError`."""
        decoder = AudioDecoder(self._format, at_once=False)
        return b"".join([*(_decode(decoder, part) for part in audio), decoder.end()])

    def expect_audio(self) -> None:
        """Raise `RealtimeError` if there is nothing to commit."""
        if self._clock.held_ms < MIN_COMMIT_MS and not self.is_open:
            message = f"expected at least {MIN_COMMIT_MS} ms of audio in the buffer, got {self._clock.held_ms} ms"
            raise RealtimeError(message, ErrorCode.INPUT_BUFFER_EMPTY)

    def expect_space(self) -> None:
        """Raise `RealtimeError` if a minute of committed audio has not been sent."""
        if self._clock.committed_ms > MAX_HELD_MS:
            expected = f"expected at most {MAX_HELD_MS:.0f} ms of committed audio to wait"
            raise RealtimeError(f"{expected}, got {self._clock.committed_ms:.0f} ms", ErrorCode.INPUT_BUFFER_FULL)

    def commit(self) -> None:
        """End the user's turn, without a response."""
        rest = self._decoder.end()
        self._renew(is_sent=bool(rest))  # a call's audio does not pass this decoder
        match self._mode:
            case InputMode.MANUAL:
                self._clock.commit(rest, first=Controls(listen=True))
            case InputMode.KEPT:
                self._clock.commit(rest)
            case InputMode.DETECTED | InputMode.CONTINUED:
                self._clock.commit(rest, last=Controls(turn={"create_response": False}))
                self._options.restore("create_response")
        self.drop_turn()

    def clear(self, has_started: bool) -> None:
        """Drop the audio that is not part of an item, in the engine too if the conversation `has_started`."""
        self._clock.clear()
        self._renew()
        self.drop_turn()
        if has_started:
            self._clears += 1
            self._clock.request(clear=True)

    def begin_tick(self, tick: TickIn) -> None:
        """Follow the controls of a tick whose answer arrives: the engine has applied them."""
        if tick.controls.clear:
            self._clears -= 1
        if self._mode is InputMode.CONTINUED and not self._options.detects_turns:
            self._mode = InputMode.KEPT

    def speech_started(self, event: SpeechStarted, is_responding: bool) -> list[Event]:
        """Return the client's event."""
        self.user_speaks = True
        self._speech_item = new_id("item")
        is_kept = self._mode is InputMode.MANUAL and not self._clears and not is_responding
        if is_kept and self._options.detects_turns:  # detection was turned off before this event arrived
            self._mode = InputMode.KEPT
        padding_ms = int((self._session.detection or {}).get("prefix_padding_ms", 0))
        start_ms = max(self._client_ms(event.at_ms - padding_ms), self._stopped_ms)
        return [self._speech_event("input_audio_buffer.speech_started", "audio_start_ms", start_ms)]

    def speech_stopped(self, event: SpeechStopped) -> list[Event]:
        """Return the client's event."""
        self.user_speaks = False
        self._stopped_ms = self._client_ms(event.at_ms)
        return [self._speech_event("input_audio_buffer.speech_stopped", "audio_end_ms", self._stopped_ms)]

    def drop_turn(self) -> None:
        """Note that the engine has ended or dropped the user's open turn: no turn is kept."""
        if self._mode in KEEPS_TURN:
            self._mode = InputMode.MANUAL

    def take_item_id(self) -> str:
        """Return the id of the item of the user's turn, which has ended."""
        found, self._speech_item = self._speech_item or new_id("item"), None
        return found

    def _speech_event(self, kind: str, name: str, at_ms: int) -> Event:
        return {"type": kind, name: at_ms, "item_id": self._speech_item}

    def _client_ms(self, at_ms: int) -> int:
        """Map a time of the engine's input to the client's own audio."""
        return max(0, round(self._clock.microphone_ms(at_ms) - self._delay_ms))

    def _renew(self, is_sent: bool = False) -> None:
        """Start another recording; `is_sent`: the rest of the one before was sent, not dropped."""
        before, self._decoder = self._decoder, AudioDecoder(self._format)
        self._delay_ms += self._decoder.delay_ms - (0 if is_sent else before.delay_ms)


def _decode(decoder: AudioDecoder, audio: Any) -> bytes:
    try:
        return decoder.feed(audio)
    except AudioError as error:
        raise RealtimeError(str(error), param="audio") from None
