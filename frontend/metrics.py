"""The bridge's metrics for Prometheus; docs/monitor.md has the table."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

TICK_S = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.24, 0.32, 0.64, 1.28, 2.56, 5.12)
RESPONSE_S = (0.05, 0.1, 0.2, 0.32, 0.5, 0.64, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0)

CONVERSATIONS = Gauge("sca_bridge_conversations", "conversations with a place in the engine")
SOCKETS = Gauge("sca_bridge_sockets", "open WebSockets")
REFUSED = Counter("sca_bridge_refused", "refused clients and requests", ["code"])
ENDED = Counter("sca_bridge_ended", "ended conversations", ["protocol", "why"])
TICK = Histogram("sca_bridge_tick_seconds", "time from a tick's request to its response", buckets=TICK_S)
RESPONSE = Histogram(
    "sca_bridge_response_seconds",
    "time from the commit of a user's turn to the first audio of its answer",
    buckets=RESPONSE_S,
)
LAG = Histogram("sca_bridge_lag_seconds", "lag of a loudspeaker before its reduction", buckets=RESPONSE_S)
BEHIND = Histogram(
    "sca_bridge_behind_seconds",
    "audio of a Realtime client that waited when a tick was sent",
    buckets=RESPONSE_S,
)
GAPS = Counter("sca_bridge_gaps", "times at which a page's loudspeaker ran out of audio")
MOVED = Counter("sca_bridge_moved", "conversations whose server was lost", ["outcome"])
