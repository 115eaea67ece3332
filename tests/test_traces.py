"""Spans: the bridge's and Triton's of one conversation are one trace, at a collector that speaks OTLP/HTTP."""

from __future__ import annotations

import json
import signal
import threading
import time
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import create_server
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict
from openai import OpenAI
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from websockets.sync.client import connect

from frontend.traces import FLUSH_S
from tests.bridges import RunningBridge, bridge
from tests.conftest import ANOTHER_BUILD, Served, serve, serve_environment, wait_until_answered
from tests.sockets import end, event
from tests.test_triton import TICK

PROMPT = "Speak of nothing but xylophones."
TYPED = "Which marimbas are there?"
SENT_WITHIN_S = 10
ATTEMPTS = 5  # Triton reads the header `traceparent` past its end, and makes nothing of it for some streams
STAGES = ("mel_frontend", "thinker_talker", "code2wav")
BRIDGE, TRITON = "sca-bridge", "triton-inference-server"


@dataclass(frozen=True)
class Span:
    """One that has come, by protobuf or JSON."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    begin_ns: int
    end_ns: int
    attributes: dict[str, str]
    whole: str


@dataclass
class Collector:
    """The spans that an OTLP/HTTP server has received."""

    port: int = 0
    spans: list[Span] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/traces"

    def take(self, kind: str, body: bytes) -> None:
        """Append an export: Triton sends JSON with hexadecimal ids, the bridge protobuf whose ids are bytes."""
        is_json = kind.startswith("application/json")
        export = json.loads(body) if is_json else MessageToDict(ExportTraceServiceRequest.FromString(body))
        for resource in export["resourceSpans"]:
            service = attributes_of(resource["resource"])["service.name"]
            for span in (span for scope in resource["scopeSpans"] for span in scope["spans"]):
                ids = [span.get(name, "") for name in ("traceId", "spanId", "parentSpanId")]
                if not is_json:
                    ids = [b64decode(text).hex() for text in ids]
                times = int(span["startTimeUnixNano"]), int(span["endTimeUnixNano"])
                whole = json.dumps([resource["resource"], span])
                self.spans.append(Span(service, span["name"], *ids, *times, attributes_of(span), whole))

    def wait_for(self, service: str, name: str, count: int = 1, **about: str) -> list[Span]:
        """Return spans of a name, and of a trace or conversation; fewer than `count` if no more arrive in time."""
        deadline = time.monotonic() + SENT_WITHIN_S
        while True:
            found = [
                span
                for span in self.spans
                if (span.service, span.name) == (service, name)
                and about.get("trace") in (None, span.trace)
                and about.get("conversation") in (None, span.attributes.get("gen_ai.conversation.id"))
            ]
            if len(found) >= count or time.monotonic() > deadline:
                return found
            time.sleep(0.1)


def attributes_of(part: dict[str, Any]) -> dict[str, str]:
    return {one["key"]: str(next(iter(one["value"].values()))) for one in part.get("attributes", [])}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    collected = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collected.take(self.headers["Content-Type"], self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collected.port = server.server_port
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield collected
        server.shutdown()


@pytest.fixture(scope="module")
def traced(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Run `./sca serve` with a collector, to which spans are sent at once."""
    environment = serve_environment("turn") | {
        "SCA_BRIDGE_TRACES_URL": collector.url,
        "OTEL_BSP_SCHEDULE_DELAY": "200",
    }
    yield from serve(environment, tmp_path_factory.mktemp("traced") / "log", ANOTHER_BUILD)


def converse(running: Served | RunningBridge, pcm: np.ndarray) -> tuple[str, str]:
    """Hold a conversation of a spoken and a typed turn; returns its id and the words of the answer."""
    events: list[dict] = []
    query = urlencode({"detection": "manual", "answer_tokens": 40, "answer_frames": 16, "system_prompt": PROMPT})
    with connect(f"{running.websocket}?{query}") as socket:
        opened = event(socket, "conversation.opened")
        socket.send(pcm[: 4 * TICK].tobytes())
        socket.send(json.dumps({"type": "message", "text": TYPED}))
        _, code = end(socket, events)
    assert code == 1000, events
    return opened["id"], next(one["text"] for one in events if one["type"] == "answer_done")


def children(collector: Collector, parents: list[Span]) -> list[Span]:
    ids = {parent.id for parent in parents}
    return [span for span in collector.spans if span.parent in ids]


def test_spans_of_bridge_and_triton_are_one_trace(traced: Served, collector: Collector, pcm):
    words = {PROMPT, TYPED}
    for _ in range(ATTEMPTS):
        conversation, text = converse(traced, pcm)
        words.add(text)
        (root,) = collector.wait_for(BRIDGE, "conversation", conversation=conversation)
        ticks = int(root.attributes["sca.ticks"])
        if requests := collector.wait_for(TRITON, "InferRequest", ticks, trace=root.trace):
            break
    assert (root.parent, root.attributes["sca.protocol"], root.attributes["sca.why"]) == ("", "pcm16", "end")
    (response,) = collector.wait_for(BRIDGE, "response", trace=root.trace)
    assert response.parent == root.id
    assert root.begin_ns < response.begin_ns < response.end_ns < root.end_ns

    assert {request.parent for request in requests} == {root.id}
    ensembles = children(collector, requests)
    stages = children(collector, ensembles)
    assert Counter(span.name for span in ensembles) == {"duplex": ticks}
    assert Counter(span.name for span in stages) == dict.fromkeys(STAGES, ticks)
    assert Counter(span.name for span in children(collector, stages)) == {"compute": 3 * ticks}
    assert all(root.begin_ns < span.begin_ns < span.end_ns < root.end_ns for span in stages)

    traces = {span.trace for span in collector.spans if span.service == BRIDGE}
    assert {span.trace for span in collector.spans} == traces, "the bridge's own questions are not traced"
    assert not [span for span in collector.spans for word in words if word in span.whole]


def test_session_of_the_realtime_protocol_is_a_span(traced: Served, collector: Collector, pcm):
    with OpenAI(api_key="none", base_url=f"{traced.http}/v1").realtime.connect(model="sca") as connection:
        session = next(iter(connection)).session
        connection.session.update(session={"type": "realtime", "audio": {"input": {"turn_detection": None}}})
        connection.input_audio_buffer.append(audio=b64encode(pcm[: 4 * TICK].tobytes()).decode())
        connection.input_audio_buffer.commit()
        connection.response.create()
        next(answer for answer in connection if answer.type == "response.done")
    (root,) = collector.wait_for(BRIDGE, "conversation", conversation=session.id)
    assert (root.parent, root.attributes["sca.protocol"], root.attributes["sca.why"]) == ("", "realtime", "gone")
    assert [span.parent for span in collector.wait_for(BRIDGE, "response", trace=root.trace)] == [root.id]


def test_triton_leaves_out_what_the_sampler_leaves_out(traced: Served, collector: Collector, pcm, tmp_path):
    environment = {"SCA_ENGINE_DIALECT": "turn", "OTEL_TRACES_SAMPLER": "always_off"}
    with bridge(traced, tmp_path / "log", environment, traces_url=collector.url) as running:
        wait_until_answered(f"{running.http}/readyz", running.process, running.log)
        before = len(collector.spans)
        converse(running, pcm)
        time.sleep(1)
        assert len(collector.spans) == before


def test_collector_that_does_not_answer_delays_no_conversation_and_no_end(traced: Served, pcm, tmp_path):
    with create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1/traces"
        environment = {"SCA_ENGINE_DIALECT": "turn", "OTEL_BSP_SCHEDULE_DELAY": "100"}
        with bridge(traced, tmp_path / "log", environment, traces_url=url) as running:
            wait_until_answered(f"{running.http}/readyz", running.process, running.log)
            converse(running, pcm)
            converse(running, pcm)
            running.process.send_signal(signal.SIGINT)
            assert running.process.wait(FLUSH_S + 60) == 0
