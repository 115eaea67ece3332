"""Attention over slots on CUDA: a kernel reads each row's keys and values in place, up to the row's length.

The kernels are written in the Triton language, whose compiler comes with torch for CUDA (unrelated to the inference
server of the same name). The keys of a row are split among as many programs as keep the whole device busy, and the
partial results are merged afterwards, as in FlashDecoding (Dao, Haziza, Massa, Sizov 2023).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.attention import CachePositions

PROGRAMS = 264  # two for each multiprocessor of an H100 or H200
MAX_SPLITS = 16


class KernelAttention:
    """Attention that reads the rows' slots and starts on the device: the host reads no value of a tensor."""

    def __init__(self, rows: CachePositions, length: int):
        self._rows, self._length = rows, length

    def __call__(self, queries: Tensor, cache: Tensor, scale: float) -> Tensor:
        """Attend from queries [R, T, heads, D] to a layer's cache [slots, 2 * key heads, positions, D].

        Return [R, T, heads * D].
        """
        rows, length, heads, size = queries.shape
        key_heads = cache.shape[1] // 2
        folded = length * heads // key_heads  # queries of a key head
        block = min(64, max(16, triton.next_power_of_2(folded)))
        blocks = triton.cdiv(folded, block)
        splits = min(MAX_SPLITS, max(1, triton.next_power_of_2(PROGRAMS // (rows * key_heads * blocks) + 1) // 2))
        out = queries.new_empty(rows, length, heads, size)
        partial = torch.empty(splits, rows, length, heads, size, device=queries.device, dtype=torch.float32)
        log_sums = torch.empty(splits, rows, length, heads, device=queries.device, dtype=torch.float32)
        attend_to_split[rows, key_heads * blocks, splits](
            queries, cache, self._rows.slots, self._rows.starts, partial, log_sums,
            scale, queries.stride(0), queries.stride(1), cache.stride(0), cache.stride(1), rows,
            length=length, groups=heads // key_heads, key_heads=key_heads, size=size, splits=splits,
            block_queries=block, block_keys=64 if queries.element_size() == 2 else 32,
        )  # fmt: skip
        merge_splits[rows * length * heads,](partial, log_sums, out, rows * length * heads, size=size, splits=splits)
        return out.flatten(2)


@triton.jit
def attend_to_split(
    queries, cache, slots, starts, partial, log_sums,
    scale, query_row, query_time, cache_slot, cache_head, rows,
    length: tl.constexpr, groups: tl.constexpr, key_heads: tl.constexpr, size: tl.constexpr, splits: tl.constexpr,
    block_queries: tl.constexpr, block_keys: tl.constexpr,
):  # fmt: skip
    """Attend to one split of a row's keys for one key head; store the softmax over it and the logarithm of its sum."""
    row, split = tl.program_id(0), tl.program_id(2)
    head, block = tl.program_id(1) % key_heads, tl.program_id(1) // key_heads
    start = tl.load(starts + row)
    end = start + length
    share = tl.cdiv(tl.cdiv(end, splits), block_keys) * block_keys
    first = split * share
    last = tl.minimum(first + share, end)

    query = block * block_queries + tl.arange(0, block_queries)  # the query heads of a time are adjacent
    time = query // groups
    query_head = head * groups + query % groups
    is_query = query < length * groups
    channel = tl.arange(0, size)
    offsets = row.to(tl.int64) * query_row + time[:, None] * query_time + query_head[:, None] * size + channel[None, :]
    q = tl.load(queries + offsets, mask=is_query[:, None], other=0.0)
    keys = cache + tl.load(slots + row) * cache_slot + head * cache_head
    values = keys + key_heads * cache_head

    max_score = tl.full([block_queries], float("-inf"), tl.float32)
    total = tl.zeros([block_queries], tl.float32)
    attended = tl.zeros([block_queries, size], tl.float32)
    for position in range(first, last, block_keys):
        at = position + tl.arange(0, block_keys)
        in_split = at < last
        key = tl.load(keys + at[None, :] * size + channel[:, None], mask=in_split[None, :], other=0.0)
        value = tl.load(values + at[:, None] * size + channel[None, :], mask=in_split[:, None], other=0.0)
        scores = tl.dot(q, key, input_precision="ieee") * scale
        visible = in_split[None, :] & (at[None, :] <= start + time[:, None])
        scores = tl.where(visible, scores, float("-inf"))
        new_max = tl.maximum(max_score, tl.max(scores, 1))
        finite_max = tl.where(new_max == float("-inf"), 0.0, new_max)  # -inf until a key is visible
        weights = tl.exp(scores - finite_max[:, None])
        rescale = tl.exp(max_score - finite_max)
        total = total * rescale + tl.sum(weights, 1)
        attended = attended * rescale[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
        max_score = new_max

    has_keys = total > 0
    attended = attended / tl.where(has_keys, total, 1.0)[:, None]
    log_sum = tl.where(has_keys, max_score + tl.log(tl.where(has_keys, total, 1.0)), float("-inf"))
    index = ((split * rows + row) * length + time) * (key_heads * groups) + query_head
    tl.store(partial + index[:, None] * size + channel[None, :], attended, mask=is_query[:, None])
    tl.store(log_sums + index, log_sum, mask=is_query)


@triton.jit
def merge_splits(partial, log_sums, out, count, size: tl.constexpr, splits: tl.constexpr):
    """Add up the splits of one query, each weighted by its share of the whole sum."""
    query = tl.program_id(0)
    split, channel = tl.arange(0, splits), tl.arange(0, size)
    log_sum = tl.load(log_sums + split * count + query)
    weights = tl.exp(log_sum - tl.max(log_sum, 0))
    attended = tl.load(partial + (split[:, None] * count + query) * size + channel[None, :])
    merged = tl.sum(attended * weights[:, None], 0) / tl.sum(weights, 0)
    tl.store(out + query * size + channel, merged.to(out.dtype.element_ty))
