"""Names of the weights in an adapter's file, as peft and the training tools around it write them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

TUNED = re.compile(r"(.+?)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(?:\.(.+))?")
TOKENS = re.compile(r"(.+?)\.(?:token_adapter\.)?trainable_tokens_delta(?:\..+)?")
WRAPPERS = re.compile(r"(?<![^.])(?:base_model\.model|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
COPIES = re.compile(r"\.(?:base_layer|token_adapter|modules_to_save(?:\.[^.]+(?=\.))?)(?=\.)")
EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj)")


def without_base_layers(name: str) -> str:
    """Return the module of a name: peft nests the pairs of several parameters of one module."""
    return re.sub(r"(?:\.base_layer)+$", "", name)


def is_zero(parts: Mapping[str, Tensor]) -> bool:
    """Return whether a module's pair adds nothing to its weight."""
    if "lora_magnitude_vector" in {leaf.partition(".")[0] for leaf in parts}:
        return False
    halves: dict[bool, list[Tensor]] = {True: [], False: []}  # B with its bias, and A
    for leaf, value in parts.items():
        halves[leaf.partition(".")[0].endswith("B")].append(value)
    return bool(halves[True] and halves[False]) and (
        not any(value.any() for value in halves[True])
        or (len(halves[True]) == 1 and not any(value.any() for value in halves[False]))
    )


def plain_name(name: str) -> str:
    """Return the name of an adapter's weight without the adapter's own name."""
    return name.replace(".default", "").removesuffix(".weight")
