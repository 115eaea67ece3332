"""Keys and values of openings that were read before: a START with one of them costs a copy, not a prefill."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

from torch import Tensor


class Openings:
    """The latest so many; the one unused for longest leaves."""

    def __init__(self, kept: int):
        self._kept = kept
        self._openings: OrderedDict[Hashable, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._openings)

    def get(self, key: Hashable, read: Callable[[], Tensor]) -> Tensor:
        """The opening under `key`; it is read where it is not kept."""
        opening = self._openings.pop(key, None)
        if opening is None:
            opening = read()
        self._openings[key] = opening
        if len(self._openings) > self._kept:
            self._openings.popitem(last=False)
        return opening
