"""ITU-T G.711: mu-law and A-law, 8 bits a sample."""

from __future__ import annotations

from functools import cache

import numpy as np

MU_LAW, A_LAW = "audio/pcmu", "audio/pcma"


def expand(codes: np.ndarray, kind: str) -> np.ndarray:
    """Return the int16 samples of uint8 codes."""
    return _expansion(kind)[codes]


def compress(samples: np.ndarray, kind: str) -> np.ndarray:
    """Return the uint8 codes whose values are nearest to int16 samples."""
    order, borders = _steps(kind)
    return order[np.searchsorted(borders, samples)]


@cache
def _steps(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the codes in the order of their samples, and the borders half way between these samples."""
    values = _expansion(kind).astype(np.int32)
    order = np.argsort(values, kind="stable")
    return order.astype(np.uint8), (values[order][1:] + values[order][:-1]) / 2


@cache
def _expansion(kind: str) -> np.ndarray:
    """Return the sample of each of the 256 codes, as ITU-T G.711 defines them, scaled to 16 bits."""
    codes = np.arange(256)
    if kind == MU_LAW:
        codes = ~codes & 0xFF
        magnitude = (((codes & 0x0F) << 3) + 0x84 << (codes >> 4 & 7)) - 0x84
        return np.where(codes & 0x80, -magnitude, magnitude).astype(np.int16)
    codes = codes ^ 0x55
    exponent, mantissa = codes >> 4 & 7, codes & 0x0F
    magnitude = np.where(exponent == 0, (mantissa << 4) + 8, (mantissa << 4) + 0x108 << np.maximum(exponent - 1, 0))
    return np.where(codes & 0x80, magnitude, -magnitude).astype(np.int16)
