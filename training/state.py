"""A training run's state on disk, replaced as a whole: a broken run goes on from it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn


def save(path: Path, step: int, optimizer: torch.optim.Optimizer | None = None, **modules: nn.Module) -> None:
    """Writes the state of a run to `path`."""
    state = {name: module.state_dict() for name, module in modules.items()}
    state |= {"step": step, "optimizer": optimizer.state_dict() if optimizer else None}
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def load(path: Path, optimizer: torch.optim.Optimizer | None = None, **modules: nn.Module) -> int:
    """Reads it into `modules`; returns the step to go on from, 0 if there is no such file."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    for name, module in modules.items():
        module.load_state_dict(state[name])
    if optimizer and state["optimizer"]:
        optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
