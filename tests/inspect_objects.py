"""Traversal of everything that an object references, for tests that look for state in any attribute."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def walk(root: Any, path: str = "engine", seen: set[int] | None = None) -> Iterator[tuple[str, Any]]:
    """Yield every object reachable from `root` with its path, except the contents of torch modules."""
    seen = set() if seen is None else seen
    if id(root) in seen or isinstance(root, str | bytes | int | float | type | torch.nn.Module):
        return
    seen.add(id(root))
    yield path, root
    if isinstance(root, torch.Tensor | np.ndarray):
        return
    if isinstance(root, dict):
        inner = [(f"{path}[{key!r}]", value) for key, value in root.items()]
    elif isinstance(root, list | tuple | set | frozenset):
        inner = [(f"{path}[{i}]", value) for i, value in enumerate(root)]
    else:
        inner = [(f"{path}.{name}", value) for name, value in getattr(root, "__dict__", {}).items()]
        closure = getattr(root, "__closure__", None) or ()
        inner += [(f"{path}<{i}>", cell.cell_contents) for i, cell in enumerate(closure)]
        if (owner := getattr(root, "__self__", None)) is not None and not isinstance(owner, type):
            inner.append((f"{path}.__self__", owner))
    for name, value in inner:
        yield from walk(value, name, seen)


def found_in(root: Any, kind: type) -> list[Any]:
    """Return all objects of a class reachable from `root`."""
    return [found for _, found in walk(root) if isinstance(found, kind)]
