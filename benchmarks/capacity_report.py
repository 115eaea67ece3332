"""Tables of the capacity of a replica and of several replicas."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.table import Table

from benchmarks.capacity import Measured, TickTimes, latencies, max_conversations, max_offered, refused_share

REFUSED = 0.001  # tolerated share of refused conversations in the busiest hour
TARGETS_MS = (100, 150, 200, 250, 320)  # limits of a tick's 99th percentile


def show_validation(times: TickTimes, tick_ms: int, served: Sequence[Measured]) -> Table:
    """Return a table that compares the model with a load test."""
    table = Table("conversations", "p50 by the model", "measured", "p99 by the model", "measured")
    for row in served:
        p50, p99 = _percentiles_ms(times, tick_ms, row.conversations)
        table.add_row(
            str(row.conversations), f"{p50:.0f} ms", f"{row.p50_ms:.0f} ms", f"{p99:.0f} ms", f"{row.p99_ms:.0f} ms"
        )
    return table


def show_targets(times: TickTimes, tick_ms: int, slots: int) -> Table:
    """Return a table of the conversations of a replica for each limit of the 99th percentile."""
    table = Table("p99 of a tick within", "conversations of a replica", "replicas for 1,000 at once")
    for target_ms in TARGETS_MS:
        count = max_conversations(times, tick_ms / 1000, target_ms / 1000, slots)
        table.add_row(f"{target_ms} ms", str(count), str(-(-1000 // count)) if count else "–")
    return table


def show_replicas(times: TickTimes, tick_ms: int, conversations: int, counts: Sequence[int], minutes: float) -> Table:
    """Return a table with a column for each number of replicas, each with a limit of `conversations`.

    `minutes`: mean duration of a conversation.
    """
    p50, p99 = _percentiles_ms(times, tick_ms, conversations)
    names = (
        "conversations at once, limit", "mean load in the busiest hour", "refused in that hour, by Erlang's formula",
        "conversations in that hour", "tick of a full replica, p50", "p99",
    )  # fmt: skip
    columns = []
    for count in counts:
        slots = count * conversations
        offered = max_offered(slots, REFUSED)
        columns.append((
            f"{slots:,}", f"{offered:,.0f}", f"{refused_share(offered, slots):.2%}", f"{offered * 60 / minutes:,.0f}",
            f"{p50:.0f} ms", f"{p99:.0f} ms",
        ))  # fmt: skip
    table = Table("", *(f"{count} replicas" for count in counts))
    for row in zip(names, *columns, strict=True):
        table.add_row(*row)
    return table


def _percentiles_ms(times: TickTimes, tick_ms: int, conversations: int) -> tuple[float, float]:
    p50, p99 = np.percentile(1000 * latencies(times, conversations, tick_ms / 1000), [50, 99])
    return float(p50), float(p99)
