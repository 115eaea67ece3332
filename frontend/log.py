"""Log lines and spans of conversations: with the conversation's id in each, and nothing that anybody said."""

from __future__ import annotations

import json
import logging
import sys
import time
from contextlib import AbstractContextManager
from typing import Any

from opentelemetry.trace import SpanKind, StatusCode

from frontend import traces
from frontend.metrics import ENDED

logger = logging.getLogger("sca.bridge")
FAILURES = ("full", "tick_failed")  # why a conversation ends that is the server's fault


class JsonLines(logging.Formatter):
    """A record as a line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """`time`, `level`, `event`, and what the record has about it."""
        time_s = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z"
        line = {"time": time_s, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "about", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


OF_UVICORN = (
    "ASGI callable returned without completing handshake.",  # of a refusal by an HTTP response, which was sent whole
    "Invalid UTF-8 sequence received from client.",  # with a traceback; the client is told by the close code 1007
)


def is_trouble(record: logging.LogRecord) -> bool:
    """uvicorn 0.54 logs as errors what is none of the server's."""
    return record.getMessage() not in OF_UVICORN


def log_to_stderr(level: str) -> None:
    """Lets the bridge's own records of this level and above be written."""
    logging.getLogger("uvicorn.error").addFilter(is_trouble)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(level.upper())


class Journal:
    """One conversation's lines and span, and its count among those that have ended."""

    def __init__(self, protocol: str, conversation: str, caller: str):
        self._protocol, self._begun_s = protocol, time.monotonic()
        self._about = {"conversation": conversation, "protocol": protocol}
        attributes = {"gen_ai.conversation.id": conversation, "sca.protocol": protocol}
        self._span = traces.begin("conversation", SpanKind.SERVER, attributes)
        self.note("opened", caller=caller)

    def note(self, event: str, level: int = logging.INFO, **about: Any) -> None:
        """A line."""
        logger.log(level, event, extra={"about": {**self._about, **about}})

    def failed(self) -> None:
        """The exception that is being handled, which nobody has foreseen."""
        logger.exception("failed", extra={"about": self._about})

    def traced(self) -> AbstractContextManager[None]:
        """While it goes on, spans are children of the conversation's."""
        return traces.current(self._span)

    def ended(self, why: str, **about: Any) -> None:
        """The last line, and the span's end."""
        ENDED.labels(self._protocol, why).inc()
        self.note("ended", why=why, seconds=round(time.monotonic() - self._begun_s, 3), **about)
        self._span.set_attributes({f"sca.{name}": value for name, value in {"why": why, **about}.items()})
        if why in FAILURES:
            self._span.set_status(StatusCode.ERROR, why)
        self._span.end()
