"""One conversation in the dialect `sca`: how far it is, and its text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from config.settings import Settings
from contract.events import Event, Text
from engine.cache_layout import TALKER_PREFIX, Eviction, Evictions
from engine.detokenizer import Detokenizer
from engine.dialect import Conversation
from engine.errors import ContextFullError

LEAVING_SHARE = 8  # when a context is full, one in so many of its ticks leaves


class ScaPositions(NamedTuple):
    """Where a conversation's next tick goes."""

    thinker: int
    talker: int
    rng_offset: int  # of the tick's first random number


@dataclass
class ScaConfig:
    """What follows from checkpoint and settings, alike for all conversations."""

    tick_ms: int
    thinker_step: int  # positions of a tick in the thinker's cache
    talker_step: int
    text_tokens: int  # of a tick
    codebooks: int
    context_ticks: int
    context_s: int
    stops_when_full: bool  # engine.context_full is `stop`

    @classmethod
    def of(cls, settings: Settings, codebooks: int) -> ScaConfig:
        """The settings' own."""
        frames, tokens = settings.audio.codec_frames, settings.engine.text_tokens_per_tick
        return cls(
            tick_ms=settings.audio.tick_ms,
            thinker_step=frames + tokens,
            talker_step=frames,
            text_tokens=tokens,
            codebooks=codebooks,
            context_ticks=settings.context_ticks,
            context_s=settings.engine.context_s,
            stops_when_full=settings.engine.context_full == "stop",
        )


@dataclass
class ScaConversation(Conversation):
    """A tick is `advance`, and `decoded` with the text tokens that the model gave."""

    config: ScaConfig
    detokenizer: Detokenizer
    ticks: int = 0  # that its caches hold
    age: int = 0  # ticks since it began
    decoded_ticks: int = 0  # of them, those in which it heard and spoke

    @property
    def clock_ms(self) -> int:
        """The input clock: milliseconds of sound that the conversation has heard."""
        return self.age * self.config.tick_ms

    @property
    def thinker_length(self) -> int:
        """Positions that the conversation takes in the thinker's cache."""
        return len(self.prompt) + self.ticks * self.config.thinker_step

    @property
    def positions(self) -> ScaPositions:
        """Of the next tick."""
        config = self.config
        uniforms = config.text_tokens + config.talker_step * config.codebooks  # of a tick
        talker = TALKER_PREFIX + self.ticks * config.talker_step
        return ScaPositions(self.thinker_length, talker, self.decoded_ticks * uniforms)

    def make_room(self) -> Evictions | None:
        """What leaves the thinker's cache and the talker's for another tick; None where there is room.

        The oldest ticks leave, but the prefixes and the first tick stay: attention leans on first positions. Raises
        `ContextFullError` where nothing may leave.
        """
        config = self.config
        if self.ticks < config.context_ticks:
            return None
        if config.stops_when_full:
            raise ContextFullError(
                f"the conversation has filled its context of {config.context_s} s (engine.context_s) and is closed: "
                "open another, or serve with engine.context_full = 'slide'"
            )
        leaving = max(1, config.context_ticks // LEAVING_SHARE)
        evictions = Evictions(
            self._eviction(len(self.prompt), config.thinker_step, leaving),
            self._eviction(TALKER_PREFIX, config.talker_step, leaving),
        )
        self.ticks -= leaving
        return evictions

    def decoded(self, tokens: list[int]) -> tuple[str, list[Event]]:
        """A tick is in the caches: the text that its tokens add, and its events."""
        self.ticks += 1
        self.decoded_ticks += 1
        text = self.detokenizer.feed(tokens)
        return text, [Text(at_ms=self.clock_ms, text=text)] if text else []

    def _eviction(self, prefix: int, step: int, leaving: int) -> Eviction:
        return Eviction(kept=prefix + step, leaving=leaving * step, length=prefix + self.ticks * step)
