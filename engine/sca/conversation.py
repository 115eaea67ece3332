"""State machine of a conversation in the dialect `sca`: its positions in the caches and its text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from config.settings import Settings
from contract.events import Event, Text
from engine.cache_layout import TALKER_PREFIX, Eviction, Evictions
from engine.detokenizer import Detokenizer
from engine.dialect import Conversation
from engine.errors import ContextFullError

EVICTED_FRACTION = 8  # a full context evicts 1 / EVICTED_FRACTION of its ticks


class ScaPositions(NamedTuple):
    """Start of a conversation's next tick in the two caches and in its random numbers."""

    thinker: int
    talker: int
    rng_offset: int  # offset of the tick's first random number


@dataclass
class ScaConfig:
    """Values derived from checkpoint and settings, the same for all conversations."""

    tick_ms: int
    thinker_step: int  # positions per tick in the thinker's cache
    talker_step: int  # positions per tick in the talker's cache
    text_tokens: int  # text tokens per tick
    codebooks: int
    context_ticks: int
    context_s: int
    stops_when_full: bool  # engine.context_full is `stop`

    @classmethod
    def of(cls, settings: Settings, codebooks: int) -> ScaConfig:
        """Derive the configuration from the settings and the number of codebooks."""
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
    """A conversation. Each tick adds 1 to `age`, and calls `make_room` and `decoded` once the prompt is prefilled."""

    config: ScaConfig
    detokenizer: Detokenizer
    ticks: int = 0  # ticks that the caches hold
    age: int = 0  # ticks since the start
    decoded_ticks: int = 0  # ticks since the start that were decoded: all except those before the prompt was prefilled

    @property
    def clock_ms(self) -> int:
        """Input clock: milliseconds of audio since the start."""
        return self.age * self.config.tick_ms

    @property
    def thinker_length(self) -> int:
        """Number of positions of the conversation in the thinker's cache."""
        return len(self.prompt) + self.ticks * self.config.thinker_step

    @property
    def positions(self) -> ScaPositions:
        """Positions of the next tick."""
        config = self.config
        uniforms = config.text_tokens + config.talker_step * config.codebooks  # random numbers per tick
        talker = TALKER_PREFIX + self.ticks * config.talker_step
        return ScaPositions(self.thinker_length, talker, self.decoded_ticks * uniforms)

    def make_room(self) -> Evictions | None:
        """Return the evictions that make room for another tick, or None if the context is not full.

        The oldest ticks are evicted, except the first one: attention relies on the first positions, so these and the
        prefixes stay. Raises `ContextFullError` if the settings forbid eviction.
        """
        config = self.config
        if self.ticks < config.context_ticks:
            return None
        if config.stops_when_full:
            raise ContextFullError(
                f"the conversation has filled its context of {config.context_s} s (engine.context_s) and is closed: "
                "open another, or serve with engine.context_full = 'slide'"
            )
        evicted = max(1, config.context_ticks // EVICTED_FRACTION)
        evictions = Evictions(
            self._eviction(len(self.prompt), config.thinker_step, evicted),
            self._eviction(TALKER_PREFIX, config.talker_step, evicted),
        )
        self.ticks -= evicted
        return evictions

    def decoded(self, tokens: list[int]) -> tuple[str, list[Event]]:
        """Count a tick as part of the caches; return the text that its tokens complete, and its events."""
        self.ticks += 1
        self.decoded_ticks += 1
        text = self.detokenizer.feed(tokens)
        return text, [Text(at_ms=self.clock_ms, text=text)] if text else []

    def _eviction(self, prefix: int, step: int, evicted: int) -> Eviction:
        """Return the eviction of `evicted` ticks after the prefix and the first tick."""
        return Eviction(kept=prefix + step, leaving=evicted * step, length=prefix + self.ticks * step)
