"""The code that only runs on CUDA, checked as far as possible without a GPU."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen3OmniMoeForConditionalGeneration

from engine import engine as engine_module
from engine import kernel_compiler, layer, slots
from engine.buckets import BatchBuckets
from engine.checkpoint import Checkpoint
from engine.code_predictor import TorchCodePredictor
from engine.decoder import Decoder
from engine.engine import DIALECTS
from engine.errors import KernelError
from engine.graph_runner import GraphRunner
from engine.row_minimums import RowMinimums
from engine.slots import SlotState
from engine.stage_timer import StageTimer
from export.random_checkpoint import random_config
from tests.conftest import ROOT

FROM_THE_HOST = {"lift_fresh", "lift_fresh_copy", "_local_scalar_dense", "nonzero", "is_nonzero", "is_pinned"}
CAPABILITY = 90  # compute capability of an H100 and H200
FLOAT32_SUMS = 2e-6  # a few roundings of sums of order one


def interpret(checkpoint_folder: str, part: str) -> str:
    """Run a part of tests/programs/interpreted.py and return its output."""
    run = subprocess.run(
        [sys.executable, "tests/programs/interpreted.py", checkpoint_folder, part],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


def test_interpreted_kernels_compute_what_the_cpu_computes(checkpoint_folder: str):
    found = interpret(checkpoint_folder, "kernels")
    for what, count in (("attention", 6), ("layers", 9), ("experts", 10)):
        differences = ast.literal_eval(re.search(rf"^{what} (.*)$", found, re.MULTILINE)[1])
        assert len(differences) == count
        assert max(differences) < FLOAT32_SUMS, what


@pytest.mark.long
def test_ticks_by_interpreted_kernels_have_the_codes_of_the_cpu(checkpoint_folder: str):
    assert "codes equal True" in interpret(checkpoint_folder, "ticks")


def capabilities(*all_of_them: int) -> list[Any]:
    """Return compute capabilities to compile for; all but the default one are `long`."""
    return [one if one == CAPABILITY else pytest.param(one, marks=pytest.mark.long) for one in all_of_them]


def compile_kernel(kernel, types: dict[str, str], chosen: dict[str, int], capability: int):
    """Compile to machine code with the compiler's assembler; `types` names arguments that are not 32-bit integers."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    signature = {name: "constexpr" if name in chosen else types.get(name, "i32") for name in names}
    constants = {(names.index(name),): value for name, value in chosen.items() if name in names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert len(compiled.asm["cubin"]) > 1000
    assert compiled.metadata.shared <= 96 * 1024, "two programs fit a multiprocessor of an H100"


@pytest.mark.parametrize("capability", capabilities(80, 89, 90))
@pytest.mark.parametrize(("kind", "block_keys", "splits"), [("bf16", 64, 16), ("bf16", 64, 1), ("fp32", 32, 4)])
def test_attention_kernel_compiles_for_gpus(capability, kind, block_keys, splits):
    """With the full-size model's shapes."""
    from engine.attention_kernel import attend_to_split, merge_splits

    types = dict.fromkeys(("queries", "cache", "out"), f"*{kind}") | {"slots": "*i64", "starts": "*i64"}
    types |= {"partial": "*fp32", "log_sums": "*fp32", "scale": "fp32", "cache_slot": "i64"}
    chosen = {"length": 1, "groups": 8, "key_heads": 4, "size": 128, "splits": splits}
    chosen |= {"block_queries": 16, "block_keys": block_keys}
    for kernel in (attend_to_split, merge_splits):
        compile_kernel(kernel, types, chosen, capability)


@pytest.mark.parametrize("capability", capabilities(80, 89, 90, 120))
@pytest.mark.parametrize(("kind", "size", "inner", "choices"), [("bf16", 2048, 768, 8), ("fp32", 1024, 384, 6)])
def test_experts_kernels_compile_for_gpus(capability, kind, size, inner, choices):
    from engine import experts_kernel as kernels
    from engine.expert_pairs import sort_by_expert

    types = dict.fromkeys(("hidden", "activated", "weight", "weights", "outputs"), f"*{kind}") | {"chosen": "*i64"}
    chosen = {"experts": 128, "choices": choices, "block_choices": 8, "size": size, "inner": inner}
    chosen |= {"block_out": kernels.BLOCK_OUT, "block_in": kernels.BLOCK_IN, "block_pairs": kernels.BLOCK_PAIRS}
    chosen |= {"block_columns": kernels.BLOCK_COLUMNS, "block_inner": kernels.BLOCK_INNER}
    types |= dict.fromkeys(("order", "ranks", "expert_of", "first_of", "end_of"), "*i64")
    for kernel in (kernels.gate_up, kernels.block_gate_up, kernels.block_down):
        compile_kernel(kernel, types, chosen, capability)
    compile_kernel(kernels.down, types, chosen | {"block_out": kernels.DOWN_OUT, "block_in": 128}, capability)
    compile_kernel(kernels.combine, types, chosen | {"block": 1024}, capability)
    compile_kernel(sort_by_expert, types | {"ends": "*i32"}, {"block": 1024}, capability)
    types = {"packed": f"*{kind}", "out": f"*{kind}"}
    compile_kernel(kernels.silu_multiply, types, {"inner": inner, "block": 1024, "gated": True}, capability)


@pytest.mark.parametrize("capability", capabilities(80, 89, 90, 120))
@pytest.mark.parametrize(("kind", "heads", "key_heads"), [("bf16", 32, 4), ("fp32", 16, 2)])
def test_layer_kernels_compile_for_gpus(capability, kind, heads, key_heads):
    from engine.fused_layer import choose, norm_rows, rotate_and_store

    types = dict.fromkeys(("hidden", "weight", "out"), f"*{kind}") | {"eps": "fp32"}
    compile_kernel(norm_rows, types, {"size": 2048, "block": 2048}, capability)
    types = dict.fromkeys(("packed", "weight", "cos", "sin", "queries", "cache"), f"*{kind}")
    types |= {"slots": "*i64", "indices": "*i64", "eps": "fp32", "cache_slot": "i64"}
    compile_kernel(rotate_and_store, types, {"heads": heads, "key_heads": key_heads, "size": 128}, capability)
    types = {"logits": f"*{kind}", "weights": f"*{kind}", "chosen": "*i64"}
    sizes = {"experts": 128, "choices": 6, "block": 128, "block_choices": 8, "normalise": True}
    compile_kernel(choose, types, sizes, capability)


def test_each_pair_is_in_one_block_and_each_block_has_one_expert():
    """For any choice of experts, which is never copied to the host."""
    from engine.expert_pairs import BLOCK_PAIRS, blocks_by_expert

    for seed, experts in ((0, 8), (1, 128), (2, 3)):
        random = torch.Generator().manual_seed(seed)
        chosen = torch.randint(0, experts, (100, 2), generator=random)
        order = chosen.flatten().argsort(stable=True)
        blocks = blocks_by_expert(chosen.flatten().bincount(minlength=experts).cumsum(0).int(), 200)
        found: list[int] = []
        for expert, first, end in zip(blocks.expert, blocks.first, blocks.end, strict=True):
            if expert < experts:
                pairs = order[first : min(int(end), int(first) + BLOCK_PAIRS)]
                assert len(pairs)
                assert (chosen.flatten()[pairs] == expert).all()
                found += pairs.tolist()
        assert sorted(found) == list(range(200))


class HostWatch(TorchDispatchMode):
    """Record of every operation that would wait for the device or copy values from the host."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        name = function.__name__.split(".")[0]
        if name in FROM_THE_HOST:
            self.found.add(name)
        return function(*args, **(kwargs or {}))


def checkpoint_without_values(checkpoint: Checkpoint) -> Checkpoint:
    """Return the random checkpoint's architecture in bfloat16; call it under FakeTensorMode."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = Qwen3OmniMoeForConditionalGeneration(random_config(checkpoint.tokenizer)).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    return Checkpoint(model, checkpoint.tokenizer, checkpoint.feature_extractor)


class CapturingRunner(GraphRunner):
    """A runner that runs every step to be captured once, on padding, under a `HostWatch`."""

    def __init__(self) -> None:
        super().__init__(StageTimer(torch.device("cpu")))
        self.seen: set[str] = set()

    def capture(self, stage, step, batch, enabled) -> None:
        batch.set_padding()
        with HostWatch() as watch:
            step(batch)
        assert not watch.found, f"{stage} {batch.variant}: {watch.found}"
        assert watch.count > 20
        self.seen.add(stage)


@pytest.mark.parametrize(
    ("dialect", "stages"),
    [
        ("sca", {"prompt", "encoder", "prefill", "text", "talker", "code predictor"}),
        ("turn", {"prompt", "prefill", "text", "talker", "code predictor"}),
    ],
)
def test_no_step_of_a_tick_reads_a_value_on_the_host(checkpoint: Checkpoint, settings, monkeypatch, dialect, stages):
    """What a captured graph must not do. The tensors here have no values at all: looking at one is an error.

    Every step at every size, greedy and sampling. They are the CPU's tensors, since torch's build for it has no
    others: a copy from device to device would not be seen.
    """
    monkeypatch.setattr(layer, "DENSE_SHARE", 0)  # experts as on CUDA
    monkeypatch.setattr(slots.RowMinimums, "measure", lambda _: RowMinimums(4, 4))
    monkeypatch.setattr(Decoder, "_attention", lambda *_: lambda queries, cache, scale: queries.flatten(2))
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        fake = checkpoint_without_values(checkpoint)
        changed = settings.with_values(engine={"slots": 4, "dialect": dialect})
        runner = CapturingRunner()
        state = SlotState(fake, changed)
        predictor = TorchCodePredictor(fake.model.talker, 4)
        DIALECTS[dialect](fake, changed, state, predictor, runner).capture(enabled=True)
    assert runner.seen == stages


def test_host_watch_records_host_operations():
    with FakeTensorMode(), HostWatch() as watch:
        torch.tensor([1, 2])
    assert watch.found
    with pytest.raises(Exception, match="_local_scalar_dense"), FakeTensorMode():
        torch.ones(3).sum().item()


def test_missing_part_of_the_kernel_compiler_is_named(monkeypatch, tmp_path):
    """As on a machine with a GPU where its headers, or its C compiler, are missing."""
    monkeypatch.setattr(kernel_compiler.sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CPATH", raising=False)
    assert kernel_compiler.compiler_problem().endswith("install gcc")
    monkeypatch.setenv("CC", "cc")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert kernel_compiler.compiler_problem() == (
        f"Python.h of Python {version} is not in {tmp_path}: install python{version}-dev"
    )
    (tmp_path / "Python.h").touch()
    assert kernel_compiler.compiler_problem() == ""


def test_engine_names_the_reason_if_kernels_cannot_be_compiled(monkeypatch, settings):
    class OnCuda:
        """A checkpoint whose model is on a GPU, as far as the engine can see."""

        model = SimpleNamespace(device=torch.device("cuda"), thinker=SimpleNamespace())

    def fails(*_, **__):
        raise subprocess.CalledProcessError(1, ["gcc", "cuda_utils.c"])

    monkeypatch.setattr(engine_module, "load_checkpoint", lambda *_: OnCuda)
    monkeypatch.setattr(engine_module, "Engine", fails)
    monkeypatch.setattr(engine_module, "compiler_problem", lambda: "no C compiler")
    with pytest.raises(KernelError, match="the CUDA kernels cannot be compiled: no C compiler"):
        engine_module.load_engine("", settings.with_values(engine={"slots": 2}))
    monkeypatch.setattr(engine_module, "compiler_problem", lambda: "")
    with pytest.raises(subprocess.CalledProcessError):
        engine_module.load_engine("", settings.with_values(engine={"slots": 2}))


def test_graphs_are_captured_for_every_number_of_rows():
    cuda = torch.device("cuda")
    assert BatchBuckets(128, cuda).all() == [1, 2, 4, 8, 16, 32, 64, 128]
    assert BatchBuckets(6, cuda).all() == [1, 2, 4, 6]
    assert BatchBuckets(1, cuda).all() == [1]
