"""Plan of the device memory that the engine allocates, made before any allocation."""

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

PROMPT_CHUNK = 128  # tokens of a system prompt that one prefill step appends
TURN_MARGIN = 144  # positions after a full context of the dialect turn, for padding that a prefill step writes
CGROUP = Path("/sys/fs/cgroup")
CPU_SLOTS = 8  # value of `engine.slots = 0` on a CPU
MAX_SLOTS = 128  # maximum for `engine.slots = 0` on a GPU, whose memory sets the number
QUESTION_POSITIONS = 256  # positions of the thinker's cache for a question about the speaker, in the scratch slot
EVICTION_COPIES = 2  # temporary copies of a slot: its keys and values while they move, its keys in float32
# Estimate of the memory for libraries, graphs and a tick's tensors. On an H200, 64 slots took 3.2e9 and 128 took 6e9.
CUDA_WORKING = 3 * 10**9


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by purpose."""

    weights: int
    slot: int  # caches of one conversation
    second: int  # one second of context, a part of `slot`
    prompts: int  # all system prompts that are cached, at their maximum length
    working: int  # graphs, libraries, copies during an eviction, the padding slot, the scratch slot
    slots: int  # number of slots
    context_s: int

    @property
    def total(self) -> int:
        """Sum in bytes."""
        return self.weights + self.prompts + self.working + self.slots * self.slot

    def slots_that_fit(self, available: int) -> int:
        """Return the number of slots that fit into `available` bytes next to weights, prompts and working memory."""
        return max(0, (available - self.weights - self.prompts - self.working) // self.slot)

    def __str__(self) -> str:
        return (
            f"{self.slots} slots of {size(self.slot)} each ({self.context_s} s of context at {size(self.second)} per "
            f"second, and a system prompt), {size(self.weights)} of weights, {size(self.prompts)} for cached system "
            f"prompts, {size(self.working)} of working memory: {size(self.total)} in total"
        )

    def expect_fit(self, available: int, where: str) -> None:
        """Raise `MemoryRefusedError` with a remedy if the plan exceeds `available` bytes; `where` names the device."""
        if self.total <= available:
            return
        fit = self.slots_that_fit(available)
        fixed = self.slot - self.second * self.context_s
        for_context = (available - self.weights - self.prompts - self.working) // self.slots - fixed
        advice = [f"engine.slots to {fit}"] if fit else []
        advice += [f"engine.context_s to {for_context // self.second}"] if for_context >= self.second else []
        remedy = "lower " + " or ".join(advice) if advice else "use a smaller checkpoint or a larger device"
        raise MemoryRefusedError(
            f"engine.slots is {self.slots}: {self}, but {where} has {size(available)} free: {remedy}"
        )


class CacheSize(NamedTuple):
    """Positions of a slot in one of the two caches."""

    per_tick: int  # positions for each tick of context
    fixed: int  # positions for everything else

    def positions(self, ticks: int) -> int:
        """Return the positions for a context of `ticks`."""
        return self.fixed + ticks * self.per_tick


def cache_sizes(settings: Settings) -> tuple[CacheSize, CacheSize]:
    """Return the sizes of the thinker's and the talker's cache for the dialect of the settings."""
    engine, frames = settings.engine, settings.audio.codec_frames
    if engine.dialect == "turn":
        fixed = engine.prompt_positions + TURN_MARGIN + QUESTION_POSITIONS
        return CacheSize(frames, fixed), CacheSize(frames, TURN_MARGIN)
    prompts = -(-engine.prompt_positions // PROMPT_CHUNK) * PROMPT_CHUNK
    return CacheSize(frames + engine.text_tokens_per_tick, prompts), CacheSize(frames, TALKER_PREFIX)


def expect_context(config: Any, settings: Settings) -> None:
    """Raise `SettingsError` for a context of more positions than the checkpoint supports."""
    for model, (per_tick, fixed) in zip(("thinker", "talker"), cache_sizes(settings), strict=True):
        supported = getattr(config, f"{model}_config").text_config.max_position_embeddings
        if fixed + settings.context_ticks * per_tick > supported:
            max_s = (supported - fixed) // per_tick * settings.audio.tick_ms // 1000
            raise SettingsError(
                f"engine.context_s: expected at most {max_s}, got {settings.engine.context_s}: "
                f"the {model} supports {supported} positions"
            )


def plan_memory(
    config: Any,
    settings: Settings,
    weights: int,
    dtype: torch.dtype,
    device: torch.device,
    cuda_working: int = CUDA_WORKING,
) -> MemoryPlan:
    """Return the plan for a checkpoint's config with `weights` bytes of weights. `settings.engine.slots` may be 0.

    `cuda_working` is the memory of graphs, libraries and a tick's tensors on CUDA, in bytes. Raises `SettingsError` for
    a context of more positions than the checkpoint supports.
    """
    expect_context(config, settings)
    engine, ticks = settings.engine, settings.context_ticks
    thinker, talker = (
        2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * dtype.itemsize
        for text in (config.thinker_config.text_config, config.talker_config.text_config)
    )  # bytes per position
    thinker_size, talker_size = cache_sizes(settings)
    scratch = slot = thinker * cache_positions(thinker_size.positions(ticks), device)
    slot += talker * cache_positions(talker_size.positions(ticks), device)
    return MemoryPlan(
        weights=weights,
        slot=slot,
        second=(thinker * thinker_size.per_tick + talker * talker_size.per_tick) * 1000 // settings.audio.tick_ms,
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
    """Return settings whose `engine.slots = 0` is replaced by the number that fits into `available` bytes.

    `available` includes the weights; default: the memory that is free on the device. Raises `MemoryRefusedError` if no
    slot fits.
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
    """Return a warmed-up engine with the number of slots that a CUDA device holds.

    `make(settings, cuda_working)` creates an engine. The first engine is sized with an estimate of the memory for
    graphs, libraries and a tick's tensors; its warm-up measures that memory, and a second engine uses the rest.
    """
    used = used_bytes or reserved_bytes
    probe = make(settings)
    probe.warm_up()
    plan: MemoryPlan = probe.memory
    caches = plan.working - CUDA_WORKING + plan.slots * plan.slot - EVICTION_COPIES * plan.slot
    reserved = used(device)
    working = max(0, reserved - plan.weights - caches)
    available = int((reserved + torch.cuda.mem_get_info(device)[0]) * settings.engine.memory_share)
    measured = replace(plan, working=plan.working - CUDA_WORKING + working)
    slots = min(MAX_SLOTS, measured.slots_that_fit(available))
    if slots == plan.slots or not slots:
        return probe
    del probe
    if device.type == "cuda":
        gc.collect()  # graphs hold their memory pool until they are freed
        torch.cuda.empty_cache()
    engine = make(settings.with_values(engine={"slots": slots}), working)
    engine.warm_up()
    return engine


def reserved_bytes(device: torch.device) -> int:
    """Return the bytes that torch has reserved on a CUDA device, used or cached."""
    return torch.cuda.memory_reserved(device)


def weights_of(config: Any, dtype: torch.dtype) -> int:
    """Return the bytes of a checkpoint's weights by its config, including modules that the engine does not run."""
    from transformers import Qwen3OmniMoeForConditionalGeneration

    with torch.device("meta"):
        model = Qwen3OmniMoeForConditionalGeneration(config)
    return sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize


def available_bytes(device: torch.device) -> int:
    """Return the free bytes of a CUDA device, or of this machine and its container."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch can reuse these bytes
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    limit, used = (CGROUP / name for name in ("memory.max", "memory.current"))
    if limit.is_file() and limit.read_text().strip() != "max":  # memory limit of a container
        counted = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        files = int(
            counted.get("inactive_file", 0)
        )  # page cache, such as files of weights; the kernel frees it on demand
        free = min(free, int(limit.read_text()) - int(used.read_text()) + files)
    return free


def size(count: float) -> str:
    """Return a number of bytes as a readable text: `1.5 GB`."""
    for unit, step in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count >= step:
            return f"{count / step:.3g} {unit}"
    return f"{count:g} bytes"
