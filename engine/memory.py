"""What the engine takes of a device's memory, known before it takes it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from config import Settings, SettingsError
from engine.attention import cache_positions
from engine.cache_layout import TALKER_PREFIX
from engine.errors import MemoryRefusedError

PROMPT_CHUNK = 128  # tokens of a system prompt that are prefilled at once
TURN_MARGIN = 144  # positions past a full context of the dialect turn, where padding is written
CGROUP = Path("/sys/fs/cgroup")
CPU_SLOTS = 8  # what `engine.slots = 0` means where no GPU says how many fit
MAX_SLOTS = 128  # and where one does
QUESTION_POSITIONS = 256  # more of them in the thinker's cache: a question about the speaker, in the scratch slot
EVICTION_COPIES = 2  # of a slot: its keys and values while they move, its keys in float32
CUDA_WORKING = 3 * 10**9  # libraries, graphs, a tick's tensors: a guess; 64 slots took 3.2e9 on an H200, 128 took 6e9


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes, by what they are for."""

    weights: int
    slot: int  # the caches of one conversation
    second: int  # of which each second of its context
    prompts: int  # of all system prompts kept, at their longest
    working: int  # graphs, libraries, the copies that an eviction makes, the padding slot, the scratch slot
    slots: int
    context_s: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.prompts + self.working + self.slots * self.slot

    def slots_that_fit(self, available: int) -> int:
        """How many conversations `available` bytes hold beside weights and prompts."""
        return max(0, (available - self.weights - self.prompts - self.working) // self.slot)

    def __str__(self) -> str:
        return (
            f"{self.slots} slots of {size(self.slot)} each ({self.context_s} s of context at {size(self.second)} a "
            f"second, and a system prompt), {size(self.weights)} of weights, {size(self.prompts)} for system prompts "
            f"kept, {size(self.working)} to work with: {size(self.total)} in all"
        )

    def expect_fit(self, available: int, where: str) -> None:
        """Raises `MemoryRefusedError` when it does not fit into `available` bytes, with what to change."""
        if self.total <= available:
            return
        fit = self.slots_that_fit(available)
        fixed = self.slot - self.second * self.context_s
        room = (available - self.weights - self.prompts - self.working) // self.slots - fixed
        advice = [f"engine.slots to {fit}"] if fit else []
        advice += [f"engine.context_s to {room // self.second}"] if room >= self.second else []
        remedy = "lower " + " or ".join(advice) if advice else "take a smaller checkpoint or a larger device"
        raise MemoryRefusedError(
            f"engine.slots is {self.slots}: {self}, but {where} has {size(available)} free: {remedy}"
        )


class CacheSize(NamedTuple):
    """Positions of a slot in one of the two caches: so many for each tick of context, and so many beside."""

    each_tick: int
    beside: int

    def positions(self, ticks: int) -> int:
        """For a context of so many ticks."""
        return self.beside + ticks * self.each_tick


def cache_sizes(settings: Settings) -> tuple[CacheSize, CacheSize]:
    """Of the thinker's cache and of the talker's, as the dialect fills them."""
    engine, frames = settings.engine, settings.audio.codec_frames
    if engine.dialect == "turn":
        beside = engine.prompt_positions + TURN_MARGIN + QUESTION_POSITIONS
        return CacheSize(frames, beside), CacheSize(frames, TURN_MARGIN)
    prompts = -(-engine.prompt_positions // PROMPT_CHUNK) * PROMPT_CHUNK
    return CacheSize(frames + engine.text_tokens_per_tick, prompts), CacheSize(frames, TALKER_PREFIX)


def expect_context(config: Any, settings: Settings) -> None:
    """Raises `SettingsError` for a context of more positions than the checkpoint knows."""
    for part, (each, beside) in zip(("thinker", "talker"), cache_sizes(settings), strict=True):
        known = getattr(config, f"{part}_config").text_config.max_position_embeddings
        if beside + settings.context_ticks * each > known:
            most = (known - beside) // each * settings.audio.tick_ms // 1000
            raise SettingsError(
                f"engine.context_s is {settings.engine.context_s}, expected at most {most}: "
                f"the {part} knows {known} positions"
            )


def plan_memory(
    config: Any,
    settings: Settings,
    weights: int,
    dtype: torch.dtype,
    device: torch.device,
    cuda_working: int = CUDA_WORKING,
) -> MemoryPlan:
    """The plan for a checkpoint's config with `weights` bytes of them; `settings.engine.slots` may still be 0.

    `cuda_working` is what graphs, libraries and a tick's tensors take on CUDA. Raises `SettingsError` for a context of
    more positions than the checkpoint knows.
    """
    expect_context(config, settings)
    engine, ticks = settings.engine, settings.context_ticks
    thinker, talker = (
        2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * dtype.itemsize
        for text in (config.thinker_config.text_config, config.talker_config.text_config)
    )  # bytes of a position
    thinker_size, talker_size = cache_sizes(settings)
    scratch = slot = thinker * cache_positions(thinker_size.positions(ticks), device)
    slot += talker * cache_positions(talker_size.positions(ticks), device)
    return MemoryPlan(
        weights=weights,
        slot=slot,
        second=(thinker * thinker_size.each_tick + talker * talker_size.each_tick) * 1000 // settings.audio.tick_ms,
        prompts=engine.prompts_kept * engine.prompt_positions * thinker,
        working=(1 + EVICTION_COPIES) * slot
        + (scratch if engine.dialect == "turn" else 0)
        + (cuda_working if device.type == "cuda" else 0),
        slots=engine.slots,
        context_s=engine.context_s,
    )


def resolve_slots(
    config: Any, settings: Settings, device: torch.device, dtype: torch.dtype, available: int | None = None
) -> Settings:
    """Settings with `engine.slots = 0` replaced by as many as fit, with the weights, into `available` bytes.

    By default those that are free on the device now. Raises `MemoryRefusedError` when none fits.
    """
    if settings.engine.slots:
        return settings
    if device.type == "cpu":
        return settings.with_values(engine={"slots": CPU_SLOTS})
    available = int((available_bytes(device) if available is None else available) * settings.engine.memory_share)
    plan = plan_memory(config, settings, weights_of(config, dtype), dtype, device)
    fit = min(MAX_SLOTS, plan.slots_that_fit(available))
    if not fit:
        plan_memory(config, settings.with_values(engine={"slots": 1}), plan.weights, dtype, device).expect_fit(
            available, str(device)
        )
    return settings.with_values(engine={"slots": fit})


def fill_slots(
    make: Callable[..., Any],
    settings: Settings,
    device: torch.device,
    used_bytes: Callable[[torch.device], int] | None = None,
) -> Any:
    """An engine, warmed up, with as many slots as a CUDA device holds.

    `make(settings, cuda_working)` gives an engine. The first one is made with a guess of what graphs, libraries and a
    tick's tensors take, and its warm-up shows what they do take; then the slots are filled with that.
    """
    used = used_bytes or held_bytes
    probe = make(settings)
    probe.warm_up()
    plan: MemoryPlan = probe.memory
    caches = plan.working - CUDA_WORKING + plan.slots * plan.slot - EVICTION_COPIES * plan.slot
    held = used(device)
    working = max(0, held - plan.weights - caches)
    most = int((held + torch.cuda.mem_get_info(device)[0]) * settings.engine.memory_share)
    measured = replace(plan, working=plan.working - CUDA_WORKING + working)
    slots = min(MAX_SLOTS, measured.slots_that_fit(most))
    if slots == plan.slots or not slots:
        return probe
    del probe
    if device.type == "cuda":
        gc.collect()  # graphs hold their pool until they are gone
        torch.cuda.empty_cache()
    engine = make(settings.with_values(engine={"slots": slots}), working)
    engine.warm_up()
    return engine


def held_bytes(device: torch.device) -> int:
    """What torch holds of a CUDA device, whether it is used or kept for later."""
    return torch.cuda.memory_reserved(device)


def weights_of(config: Any, dtype: torch.dtype) -> int:
    """Bytes of a checkpoint's weights, from its config alone: what the engine does not run is counted in."""
    from transformers import Qwen3OmniMoeForConditionalGeneration

    with torch.device("meta"):
        model = Qwen3OmniMoeForConditionalGeneration(config)
    return sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize


def available_bytes(device: torch.device) -> int:
    """What is free on the device, or of this machine's memory, now."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch keeps it
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    limit, used = (CGROUP / name for name in ("memory.max", "memory.current"))
    if limit.is_file() and limit.read_text().strip() != "max":  # a container's
        counted = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        files = int(counted.get("inactive_file", 0))  # in the page cache, as weights that were read: given up at need
        free = min(free, int(limit.read_text()) - int(used.read_text()) + files)
    return free


def size(count: float) -> str:
    """Bytes for people: `1.5 GB`."""
    for unit, step in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count >= step:
            return f"{count / step:.3g} {unit}"
    return f"{count:g} bytes"
