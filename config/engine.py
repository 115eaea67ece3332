"""The section [engine]: slots, context, and the defaults of a conversation."""

from __future__ import annotations

from dataclasses import dataclass

from config.loader import expect

DIALECTS = ("turn", "sca")
MAX_TYPED = 4000  # characters of a typed message: about ten pieces, which are tokenized in the message's tick
MAX_PROMPT_CHARACTERS = 20_000  # maximum length of a system prompt; a longer one is rejected before tokenization


@dataclass(frozen=True)
class EngineSettings:
    """The engine's slots, and the defaults of a conversation."""

    dialect: str
    voice: str
    system_prompt: str
    text_tokens_per_tick: int
    slots: int
    context_s: int
    context_full: str
    prompt_positions: int
    prompts_kept: int
    memory_share: float
    prefill_tokens: int
    tick_share: float
    cuda_graphs: bool
    cpu_threads: int
    idle_timeout_s: float

    def __post_init__(self) -> None:
        expect(self.dialect in DIALECTS, "engine.dialect", self.dialect, " or ".join(DIALECTS))
        expect(self.context_full in ("slide", "stop"), "engine.context_full", self.context_full, "slide or stop")
        expect(0 <= self.slots < 1e6, "engine.slots", self.slots, "a number from 0 (as many as fit) to a million")
        expect(0 < self.memory_share <= 1, "engine.memory_share", self.memory_share, "a share above 0 and up to 1")
        expect(0 <= self.tick_share <= 1, "engine.tick_share", self.tick_share, "a share up to 1, or 0 for no limit")
        for name in (
            "text_tokens_per_tick",
            "context_s",
            "prompt_positions",
            "prompts_kept",
            "prefill_tokens",
            "cpu_threads",
            "idle_timeout_s",
        ):
            value = getattr(self, name)
            expect(0 < value < 1e6, f"engine.{name}", value, "a number above 0 and below a million")
