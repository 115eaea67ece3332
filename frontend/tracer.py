"""The interface by which a bridge records spans; without tracing nothing is recorded."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any


class Span:
    """A span that is not recorded."""

    def end(self, failed: bool = False, **attributes: Any) -> None:
        """End the span, with attributes of its outcome."""


class Tracer:
    """A tracer that records nothing; see `frontend.traces` for OpenTelemetry's."""

    def begin(self, name: str, is_server: bool = False, **attributes: Any) -> Span:
        """Begin a span, a child of the current one."""
        return Span()

    def current(self, span: Span) -> AbstractContextManager[None]:
        """Make `span` the parent of the spans that begin inside of the context."""
        return nullcontext()

    def headers(self) -> dict[str, str]:
        """Return the headers by which Triton's spans become children of the current one."""
        return {}
