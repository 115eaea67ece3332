"""Attention over slots on CUDA: one kernel reads each row's keys and values in place, and no further than they go.

Written in the Triton language (the compiler that comes with torch for CUDA; no relation of the inference server).
The keys of a row are read in as many parts as it takes to keep the whole device busy, and the parts are joined after,
as in FlashDecoding (Dao, Haziza, Massa, Sizov 2023).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.attention import CachePositions

PROGRAMS = 264  # two for each multiprocessor of an H100 or H200
MAX_PARTS = 16


class KernelAttention:
    """Reads the rows' slots and starts on the device: no value is looked at on the host."""

    def __init__(self, rows: CachePositions, length: int):
        self._rows, self._length = rows, length

    def __call__(self, queries: Tensor, cache: Tensor, scale: float) -> Tensor:
        """queries [R, T, heads, D], a layer's cache [slots, 2 * key heads, positions, D] -> [R, T, heads * D]."""
        rows, length, heads, size = queries.shape
        key_heads = cache.shape[1] // 2
        folded = length * heads // key_heads  # queries of a key head
        block = min(64, max(16, triton.next_power_of_2(folded)))
        blocks = triton.cdiv(folded, block)
        parts = min(MAX_PARTS, max(1, triton.next_power_of_2(PROGRAMS // (rows * key_heads * blocks) + 1) // 2))
        out = queries.new_empty(rows, length, heads, size)
        partial = torch.empty(parts, rows, length, heads, size, device=queries.device, dtype=torch.float32)
        log_sums = torch.empty(parts, rows, length, heads, device=queries.device, dtype=torch.float32)
        read_part[rows, key_heads * blocks, parts](
            queries, cache, self._rows.slots, self._rows.starts, partial, log_sums,
            scale, queries.stride(0), queries.stride(1), cache.stride(0), cache.stride(1), rows,
            length=length, groups=heads // key_heads, key_heads=key_heads, size=size, parts=parts,
            block_queries=block, block_keys=64 if queries.element_size() == 2 else 32,
        )  # fmt: skip
        join_parts[rows * length * heads,](partial, log_sums, out, rows * length * heads, size=size, parts=parts)
        return out.flatten(2)


@triton.jit
def read_part(
    queries, cache, slots, starts, partial, log_sums,
    scale, query_row, query_time, cache_slot, cache_head, rows,
    length: tl.constexpr, groups: tl.constexpr, key_heads: tl.constexpr, size: tl.constexpr, parts: tl.constexpr,
    block_queries: tl.constexpr, block_keys: tl.constexpr,
):  # fmt: skip
    """One part of one row's keys for one key head: softmax over that part, and the logarithm of its sum."""
    row, part = tl.program_id(0), tl.program_id(2)
    head, block = tl.program_id(1) % key_heads, tl.program_id(1) // key_heads
    start = tl.load(starts + row)
    end = start + length
    share = tl.cdiv(tl.cdiv(end, parts), block_keys) * block_keys
    first = part * share
    last = tl.minimum(first + share, end)

    query = block * block_queries + tl.arange(0, block_queries)  # groups of a time side by side
    time = query // groups
    query_head = head * groups + query % groups
    inside = query < length * groups
    channel = tl.arange(0, size)
    places = row.to(tl.int64) * query_row + time[:, None] * query_time + query_head[:, None] * size + channel[None, :]
    asked = tl.load(queries + places, mask=inside[:, None], other=0.0)
    keys = cache + tl.load(slots + row) * cache_slot + head * cache_head
    values = keys + key_heads * cache_head

    greatest = tl.full([block_queries], float("-inf"), tl.float32)
    total = tl.zeros([block_queries], tl.float32)
    attended = tl.zeros([block_queries, size], tl.float32)
    for position in range(first, last, block_keys):
        at = position + tl.arange(0, block_keys)
        there = at < last
        key = tl.load(keys + at[None, :] * size + channel[:, None], mask=there[None, :], other=0.0)
        value = tl.load(values + at[:, None] * size + channel[None, :], mask=there[:, None], other=0.0)
        scores = tl.dot(asked, key, input_precision="ieee") * scale
        visible = there[None, :] & (at[None, :] <= start + time[:, None])
        scores = tl.where(visible, scores, float("-inf"))
        now = tl.maximum(greatest, tl.max(scores, 1))
        safe = tl.where(now == float("-inf"), 0.0, now)  # nothing visible yet
        weights = tl.exp(scores - safe[:, None])
        before = tl.exp(greatest - safe)
        total = total * before + tl.sum(weights, 1)
        attended = attended * before[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
        greatest = now

    some = total > 0
    attended = attended / tl.where(some, total, 1.0)[:, None]
    log_sum = tl.where(some, greatest + tl.log(tl.where(some, total, 1.0)), float("-inf"))
    place = ((part * rows + row) * length + time) * (key_heads * groups) + query_head
    tl.store(partial + place[:, None] * size + channel[None, :], attended, mask=inside[:, None])
    tl.store(log_sums + place, log_sum, mask=inside)


@triton.jit
def join_parts(partial, log_sums, out, count, size: tl.constexpr, parts: tl.constexpr):
    """The parts of one query, each weighted by its share of the whole sum."""
    query = tl.program_id(0)
    part, channel = tl.arange(0, parts), tl.arange(0, size)
    log_sum = tl.load(log_sums + part * count + query)
    weights = tl.exp(log_sum - tl.max(log_sum, 0))
    attended = tl.load(partial + (part[:, None] * count + query) * size + channel[None, :])
    joined = tl.sum(attended * weights[:, None], 0) / tl.sum(weights, 0)
    tl.store(out + query * size + channel, joined.to(out.dtype.element_ty))
