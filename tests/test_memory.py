"""The memory plan equals what the engine allocates, and settings that exceed the device are refused."""

from __future__ import annotations

import re
import urllib.request
from dataclasses import dataclass

import pytest
import torch

from benchmarks.full_size import full_config
from config import Settings, SettingsError
from engine.checkpoint import Checkpoint
from engine.engine import Engine
from engine.errors import MemoryRefusedError
from engine.memory import (
    CUDA_WORKING,
    MemoryPlan,
    available_bytes,
    fill_slots,
    plan_memory,
    resolve_slots,
    size,
    weights_of,
)
from engine.prompt import PromptPrefill
from tests.conftest import Served
from tests.inspect_objects import found_in

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
GIGABYTE = 10**9


def has_free(monkeypatch, gigabytes: float) -> None:
    """Simulate an unused GPU with `gigabytes` of free memory."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (int(gigabytes * GIGABYTE), 999 * GIGABYTE))
    for name in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda _: 0)


def full_plan(settings, **engine) -> MemoryPlan:
    changed = settings.with_values(engine=engine)
    return plan_memory(full_config(), changed, 70 * GIGABYTE, torch.bfloat16, CUDA)


@pytest.mark.parametrize(("dialect", "thinker_slots"), [("sca", 4), ("turn", 5)])
def test_plan_equals_the_size_of_the_caches(checkpoint: Checkpoint, settings, dialect, thinker_slots):
    """Three slots and a padding slot; in the dialect `turn` also the thinker's scratch slot."""
    changed = settings.with_values(engine={"slots": 3, "context_s": 20, "dialect": dialect})
    engine = Engine(checkpoint, changed)
    caches = (engine.slots.thinker_cache, engine.slots.talker_cache)
    assert engine.memory.slot == sum(cache.bytes_per_slot for cache in caches)
    allocated = sum(cache.buffer.nbytes for cache in caches)
    assert caches[0].buffer.shape[1] == thinker_slots
    assert 3 * engine.memory.slot < allocated <= engine.memory.slots * engine.memory.slot + engine.memory.working
    assert engine.memory.slots == 3
    assert engine.memory.weights == sum(p.nbytes for p in checkpoint.model.parameters())


def test_plan_includes_cached_prompts(checkpoint: Checkpoint, settings, ticks):
    changed = settings.with_values(engine={"prompts_kept": 2, "prompt_positions": 40})
    engine = Engine(checkpoint, changed)
    (prompts,) = found_in(engine.dialect, PromptPrefill)
    sizes = []
    for number in range(5):
        engine.open(1, engine.parse_options({"system_prompt": f"Be kind {number}."}))
        engine.tick({1: ticks[0]})
        sizes.append(prompts.cached_bytes)
    assert sizes[0] < sizes[1] == sizes[4] <= engine.memory.prompts, "expected the two latest prompts"


def test_cached_prompt_needs_no_prefill(engine: Engine, ticks):
    options = engine.parse_options({"system_prompt": "Be kind."})
    engine.open("first", options)
    first = engine.tick({"first": ticks[0]})["first"]
    spent = engine.stage_seconds["prompt"]
    engine.open("second", options)
    second = engine.tick({"second": ticks[0]})["second"]
    assert engine.stage_seconds["prompt"] == spent
    assert torch.equal(first.codes, second.codes)
    assert first.tokens == second.tokens


def test_plan_of_the_full_size_model(settings):
    """98,304 bytes per position in the thinker (48 layers, 4 heads of 128, keys and values in 2 bytes each).

    The talker takes 20,480 bytes per position.
    """
    plan = full_plan(settings, slots=100, context_s=240, prompt_positions=512)
    assert plan.second == int((6 * 98304 + 4 * 20480) / 0.32)
    assert plan.slot == (512 + 750 * 6) * 98304 + (5 + 750 * 4) * 20480
    assert str(plan).startswith("100 slots of 554 MB each (240 s of context at 2.1 MB per second")


def test_refusal_names_values_that_fit(settings):
    plan = full_plan(settings, slots=128, context_s=240)
    with pytest.raises(MemoryRefusedError) as error:
        plan.expect_fit(130 * GIGABYTE, "cuda")
    message = str(error.value)
    assert message.startswith("engine.slots is 128: 128 slots of 554 MB each")
    found = re.search(r"but cuda has 130 GB .*: lower engine.slots to (\d+) or engine.context_s to (\d+)$", message)
    full_plan(settings, slots=int(found[1]), context_s=240).expect_fit(130 * GIGABYTE, "cuda")
    full_plan(settings, slots=128, context_s=int(found[2])).expect_fit(130 * GIGABYTE, "cuda")
    with pytest.raises(MemoryRefusedError):
        full_plan(settings, slots=int(found[1]) + 1, context_s=240).expect_fit(130 * GIGABYTE, "cuda")
    with pytest.raises(MemoryRefusedError, match="use a smaller checkpoint or a larger device"):
        plan.expect_fit(60 * GIGABYTE, "cuda")


def test_engine_refuses_before_it_allocates(checkpoint: Checkpoint, settings):
    with pytest.raises(MemoryRefusedError, match="engine.slots is 900000: .* lower engine.slots to"):
        Engine(checkpoint, settings.with_values(engine={"slots": 900000}))


def test_context_beyond_the_positions_of_the_model_is_refused(checkpoint: Checkpoint, settings):
    expected = r"engine.context_s: expected at most \d+, got 3000: the thinker supports 32768 positions"
    with pytest.raises(SettingsError, match=expected):
        Engine(checkpoint, settings.with_values(engine={"context_s": 3000, "slots": 1}))


@pytest.mark.parametrize(("total", "slots"), [(86, 4), (110, 54), (150, 128)])
def test_number_of_slots_follows_from_the_memory_of_a_gpu(settings, monkeypatch, total, slots):
    has_free(monkeypatch, total)
    assert resolve_slots(full_config(), settings, CUDA, torch.bfloat16).engine.slots == slots


def test_loaded_weights_are_counted_once(checkpoint: Checkpoint, settings, monkeypatch):
    """The weights are on the GPU before the engine is created, so free memory does not include them."""
    weights = sum(parameter.nbytes for parameter in checkpoint.model.parameters())
    received: list[int | None] = []

    def resolve(config, unresolved, device, dtype, available=None) -> Settings:
        received.append(available)
        return unresolved.with_values(engine={"slots": 1})

    monkeypatch.setattr("engine.engine.resolve_slots", resolve)
    monkeypatch.setattr("engine.engine.available_bytes", lambda _: 5 * GIGABYTE)
    Engine(checkpoint, settings)
    assert received == [5 * GIGABYTE + weights]


def test_gpu_without_memory_for_a_slot_is_refused(settings, monkeypatch):
    has_free(monkeypatch, 48)
    with pytest.raises(MemoryRefusedError, match="use a smaller checkpoint or a larger device"):
        resolve_slots(full_config(), settings, CUDA, torch.bfloat16)


@dataclass
class FakeEngine:
    """Stand-in for an engine on a GPU."""

    memory: MemoryPlan
    warmed_up: bool = False

    def warm_up(self) -> None:
        self.warmed_up = True


@pytest.mark.parametrize(("working", "expected"), [(1, 58), (3, 54), (9, 40)])
def test_slots_fill_the_memory_that_a_warm_up_leaves(settings, monkeypatch, working, expected):
    """A device of 110 GB: the first engine assumes 3 GB of working memory, its warm-up measures `working` GB."""
    made: list[FakeEngine] = []

    def make(chosen, cuda_working: int = CUDA_WORKING) -> FakeEngine:
        weights = weights_of(full_config(), torch.bfloat16)
        has_free(monkeypatch, 110 - weights / GIGABYTE)  # the weights are loaded before
        chosen = resolve_slots(full_config(), chosen, CUDA, torch.bfloat16, weights + available_bytes(CUDA))
        plan = plan_memory(full_config(), chosen, weights, torch.bfloat16, CUDA, cuda_working)
        made.append(FakeEngine(plan))
        return made[-1]

    def used(_: torch.device) -> int:
        plan = made[-1].memory
        caches = (plan.slots + 1) * plan.slot
        total = plan.weights + caches + working * GIGABYTE
        has_free(monkeypatch, 110 - total // GIGABYTE)
        return total

    has_free(monkeypatch, 110)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    engine = fill_slots(make, settings, CUDA, used)
    assert engine.warmed_up
    assert engine.memory.slots == pytest.approx(expected, abs=1)
    assert len(made) == (1 if working == 3 else 2)


def test_cpu_has_eight_slots_by_default(checkpoint: Checkpoint, settings):
    assert Engine(checkpoint, settings).settings.engine.slots == 8
    assert settings.engine.slots == 0


def test_sizes_are_readable():
    assert [size(n) for n in (12, 2_500, 3_210_000, 70.5e9, 4e12)] == [
        "12 bytes",
        "2.5 KB",
        "3.21 MB",
        "70.5 GB",
        "4 TB",
    ]
    assert available_bytes(CPU) > 2**20


def test_triton_exports_the_memory_plan(served: Served):
    url = f"http://127.0.0.1:{served.settings.triton.metrics_port}/metrics"
    text = urllib.request.urlopen(url).read().decode()
    found = {label: float(value) for label, value in re.findall(r'^sca_\w+\{what="(.*?)"\} (\S+)$', text, re.MULTILINE)}
    assert found["total"] == 4
    assert found["slots"] == 4 * found["one slot"]
    assert found["weights"] > 7e6
    assert re.search(r"^sca_context_seconds 180$", text, re.MULTILINE)
