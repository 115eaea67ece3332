"""Training loop of every stage: optimizer, learning rate, progress, and a saved state to continue from."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

MAX_GRADIENT_NORM = 1.0


def load(path: Path, **modules: nn.Module) -> dict[str, Any]:
    """Load the state of a run into `modules`; return the state. Raises `FileNotFoundError`."""
    state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    for name, module in modules.items():
        module.load_state_dict(state[name])
    return state


class Run:
    """A training stage: iterate over the remaining steps, and call `learn` with each step's loss.

    The learning rate rises over `warm_up` steps and then falls to `final` of `rate`. `modules` are saved to `path`, and
    loaded from it if it exists.
    """

    def __init__(
        self,
        path: Path,
        learned: Iterable[nn.Parameter],
        steps: int,
        rate: float,
        *,
        warm_up: int = 200,
        final: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.98),
        weight_decay: float = 0.02,
        save_s: float = 120,
        **modules: nn.Module,
    ):
        self._path, self._modules, self._learned = path, modules, list(learned)
        self._steps, self._rate, self._warm_up, self._final, self._save_s = steps, rate, warm_up, final, save_s
        self._optimizer = torch.optim.AdamW(self._learned, rate, betas=betas, weight_decay=weight_decay)
        self._step = 0
        if path.exists():
            state = load(path, **modules)
            self._optimizer.load_state_dict(state["optimizer"])
            self._step = int(state["step"])
        self._bar = tqdm(total=steps, initial=self._step, mininterval=10)
        self._saved_at = time.monotonic()

    def __iter__(self) -> Iterator[int]:
        """Yield the numbers of the remaining steps."""
        while self._step < self._steps:
            for group in self._optimizer.param_groups:
                rising = min(1.0, (self._step + 1) / self._warm_up)
                group["lr"] = self._rate * rising * self._final ** (self._step / self._steps)
            yield self._step

    def learn(self, loss: Tensor, /, **shown: float | Tensor) -> bool:
        """Update the parameters for `loss`; show `shown` in the progress bar. Return True if the state was saved."""
        loss.backward()
        nn.utils.clip_grad_norm_(self._learned, MAX_GRADIENT_NORM)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._step += 1
        self._bar.update()
        self._bar.set_postfix({name: f"{float(value):.3f}" for name, value in shown.items()})
        if self._step < self._steps and time.monotonic() - self._saved_at < self._save_s:
            return False
        self._save()
        return True

    def log(self, line: str) -> None:
        """Write a line above the progress bar."""
        self._bar.write(f"step {self._step}: {line}")

    def _save(self) -> None:
        state = {name: module.state_dict() for name, module in self._modules.items()}
        temporary = self._path.with_suffix(".tmp")
        torch.save(state | {"step": self._step, "optimizer": self._optimizer.state_dict()}, temporary)
        temporary.replace(self._path)
        self._saved_at = time.monotonic()
