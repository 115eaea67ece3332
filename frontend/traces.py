"""Spans of conversations for OpenTelemetry, which Triton's own spans join; nothing that anybody said.

The provider is not the global one, to which FastAPI would tell a WebSocket's query, and so its system prompt.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry.trace import NoOpTracerProvider, Span, SpanKind, TracerProvider, get_current_span, use_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

FLUSH_S = 3.0  # for the last spans: a collector that does not answer holds up nobody

_provider: TracerProvider = NoOpTracerProvider()


def send_to(url: str) -> None:
    """Has spans sent to an OTLP/HTTP collector, by a thread with a bounded queue; without a URL none are made.

    The environment variables of OpenTelemetry's SDK hold: OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS, OTEL_BSP_*.
    """
    global _provider
    if not url:
        _provider = NoOpTracerProvider()
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk import trace
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = trace.TracerProvider(resource=Resource.create({"service.name": "sca-bridge"}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(url)))
    _provider = provider


def begin(
    name: str, kind: SpanKind = SpanKind.INTERNAL, attributes: Mapping[str, AttributeValue] | None = None
) -> Span:
    """A span, a child of the current one; it is sent when it ends, and not at all where it does not."""
    return _provider.get_tracer("sca").start_span(name, kind=kind, attributes=attributes)


@contextmanager
def current(span: Span) -> Iterator[None]:
    """While it goes on, spans that begin are this one's children, Triton's too; an exception is not its business."""
    with use_span(span, record_exception=False, set_status_on_exception=False):
        yield


def headers() -> dict[str, str]:
    """What makes Triton's spans of a gRPC stream children of the current one; nothing where that is not recorded.

    Triton traces whatever has the header, whether it says sampled or not.
    """
    carrier: dict[str, str] = {}
    if get_current_span().is_recording():
        TraceContextTextMapPropagator().inject(carrier)
    return carrier


async def flush() -> None:
    """Sends what waits; no span can be sent afterwards."""
    if shutdown := getattr(_provider, "shutdown", None):
        sending = threading.Thread(target=shutdown, daemon=True)
        sending.start()
        await asyncio.to_thread(sending.join, FLUSH_S)
