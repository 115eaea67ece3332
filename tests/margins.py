"""Margins of the oracle's discrete choices: how far transformers is from another code, token or expert."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# Smallest margin that rounding cannot change: the engine's log-mel and float32 sums differ from transformers' by about
# 1e-5.
MIN_MARGIN = 1e-4


@contextmanager
def recorded_margins(model: Any) -> Iterator[list[float]]:
    """Yield a list that receives the margin of every choice of the model within the block.

    The choices are codes and text tokens, by the two highest logits, and experts, by the last chosen and the first
    other router probability (logarithms). Rounding, which depends on the processor, decides a choice without a margin.
    """
    margins: list[float] = []

    def of_logits(suppressed: int) -> Callable[..., None]:
        def record(_: nn.Module, __: Any, logits: Tensor) -> None:
            first, second = logits[0, -1, : logits.shape[-1] - suppressed].topk(2).values.tolist()
            margins.append(first - second)

        return record

    def of_router(router: nn.Module, inputs: tuple[Tensor, ...], _: Any) -> None:
        hidden = inputs[0].reshape(-1, inputs[0].shape[-1])
        scores = nn.functional.linear(hidden, router.weight).log_softmax(-1)
        chosen, other = scores.topk(router.top_k + 1, dim=-1).values[:, -2:].unbind(-1)
        margins.append(float((chosen - other).min()))

    talker = model.talker
    routers = [module for name, module in model.named_modules() if name.endswith("mlp.gate")]
    heads = [model.thinker.lm_head, *talker.code_predictor.lm_head]
    hooks = [talker.codec_head.register_forward_hook(of_logits(suppressed=1024))]
    hooks += [head.register_forward_hook(of_logits(suppressed=0)) for head in heads]
    hooks += [router.register_forward_hook(of_router) for router in routers]
    try:
        with torch.no_grad():
            yield margins
    finally:
        for hook in hooks:
            hook.remove()
