"""Spans of conversations for OpenTelemetry, which Triton's spans join; no span contains words of a conversation.

The provider is not OpenTelemetry's global one: FastAPI's instrumentation would add the query of a WebSocket to its
spans, and with it the system prompt.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span as OtelSpan
from opentelemetry.trace import SpanKind, StatusCode, get_current_span, use_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from config import Settings
from frontend.plugins import Plugins
from frontend.tracer import Span, Tracer

FLUSH_S = 3.0  # timeout of the last export, for a collector that does not answer


class RecordedSpan(Span):
    """A span of OpenTelemetry; it is exported when it ends."""

    def __init__(self, span: OtelSpan):
        self.span = span

    def end(self, failed: bool = False, **attributes: Any) -> None:
        """End the span."""
        self.span.set_attributes(attributes)
        if failed:
            self.span.set_status(StatusCode.ERROR, str(attributes.get("sca.why", "")))
        self.span.end()


class OtelTracer(Tracer):
    """Exports spans to an OTLP/HTTP collector, by a thread with a bounded queue.

    The environment variables of OpenTelemetry's SDK apply: OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS, OTEL_BSP_*.
    """

    def __init__(self, url: str):
        resource = Resource.create({"service.name": "sca-bridge"})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(url)))
        self._tracer = self._provider.get_tracer("sca")

    def begin(self, name: str, is_server: bool = False, **attributes: Any) -> Span:
        """Begin a span; see `Tracer`."""
        kind = SpanKind.SERVER if is_server else SpanKind.INTERNAL
        return RecordedSpan(self._tracer.start_span(name, kind=kind, attributes=attributes))

    @contextmanager
    def current(self, span: Span) -> Iterator[None]:
        """Make `span` the current one; see `Tracer`."""
        assert isinstance(span, RecordedSpan)
        with use_span(span.span, record_exception=False, set_status_on_exception=False):
            yield

    def headers(self) -> dict[str, str]:
        """Return Triton's headers; see `Tracer`. Triton traces each stream with the header, sampled or not."""
        carrier: dict[str, str] = {}
        if get_current_span().is_recording():
            TraceContextTextMapPropagator().inject(carrier)
        return carrier

    async def flush(self) -> None:
        """Export the spans that wait; no later span is exported."""
        sending = threading.Thread(target=self._provider.shutdown, daemon=True)
        sending.start()
        await asyncio.to_thread(sending.join, FLUSH_S)


def add_to(plugins: Plugins, settings: Settings) -> None:
    """Export spans if `bridge.traces_url` is set."""
    if settings.bridge.traces_url:
        tracer = plugins.tracer = OtelTracer(settings.bridge.traces_url)
        plugins.closers.append(tracer.flush)
