"""Log lines of the bridge, as JSON: each names its conversation, none contains audio or words of a conversation."""

from __future__ import annotations

import json
import logging
import sys
import time
from contextlib import AbstractContextManager
from typing import Any

from frontend.metrics import ENDED
from frontend.tracer import Tracer

logger = logging.getLogger("sca.bridge")
FAILURES = ("full", "tick_failed")  # reasons for an end that are the server's fault
IGNORED = (
    "ASGI callable returned without completing handshake.",  # after a refusal as a complete HTTP response
    "Invalid UTF-8 sequence received from client.",  # the client receives close code 1007
)
"""Errors of uvicorn 0.54 that are not errors of the bridge."""


class JsonLines(logging.Formatter):
    """A record as a line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return `time`, `level`, `event` and the fields of the record."""
        time_s = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z"
        line = {"time": time_s, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "about", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def is_relevant(record: logging.LogRecord) -> bool:
    """Return whether a record of uvicorn is an error of the bridge."""
    return record.getMessage() not in IGNORED


def log_to_stderr(level: str) -> None:
    """Write the bridge's records of this level and above to the standard error."""
    logging.getLogger("uvicorn.error").addFilter(is_relevant)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(level.upper())


class Journal:
    """The log lines and the span of one conversation, and its count in the metric of ended conversations."""

    def __init__(self, protocol: str, conversation: str, caller: str, tracer: Tracer):
        self._protocol, self._begun_s, self._tracer = protocol, time.monotonic(), tracer
        self._about = {"conversation": conversation, "protocol": protocol}
        attributes = {"gen_ai.conversation.id": conversation, "sca.protocol": protocol}
        self._span = tracer.begin("conversation", is_server=True, **attributes)
        self.note("opened", caller=caller)

    def note(self, event: str, level: int = logging.INFO, **about: Any) -> None:
        """Write a line."""
        logger.log(level, event, extra={"about": {**self._about, **about}})

    def failed(self) -> None:
        """Write the exception that is being handled, as an unexpected failure."""
        logger.exception("failed", extra={"about": self._about})

    def traced(self) -> AbstractContextManager[None]:
        """Return a context whose spans are children of the conversation's span."""
        return self._tracer.current(self._span)

    def ended(self, why: str, **about: Any) -> None:
        """Write the last line and end the span."""
        ENDED.labels(self._protocol, why).inc()
        self.note("ended", why=why, seconds=round(time.monotonic() - self._begun_s, 3), **about)
        attributes = {f"sca.{name}": value for name, value in {"why": why, **about}.items()}
        self._span.end(failed=why in FAILURES, **attributes)
