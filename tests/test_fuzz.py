"""Both protocols, sent whatever hypothesis invents: the protocol answers, the conversation goes on, no slot is lost.

500 conversations each in every run, 10,000 under `./sca test --long`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from client.python_websocket import talk
from config.settings import OPTIONS
from frontend.pcm16.frames import Control
from frontend.realtime.events import CLIENT_EVENTS
from tests.conftest import Served
from tests.sockets import wait_until_empty

MAX_ERROR = 1500  # characters of an error: a line, and the names of what was expected
SHORT = "?answer_tokens=4&answer_frames=8"

numbers = st.one_of(st.integers(), st.integers(2**62, 2**80), st.floats(allow_nan=True), st.booleans())
texts = st.one_of(st.text(max_size=60), st.sampled_from(["", "\0", "a\0b", "\ud800", "é" * 30, "x" * 300, "NaN"]))
values = st.recursive(
    st.one_of(st.none(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)
anything = st.one_of(
    texts,
    st.builds(json.dumps, values),
    st.binary(max_size=40),  # as a text frame: seldom UTF-8
    st.sampled_from(["{" * 300, "[" * 300, "1" * 5000, '{"type": "end"', '{"type": null}']),
)

controls = st.builds(
    lambda kind, fields: json.dumps({**fields, "type": kind}),
    st.sampled_from([control.value for control in Control if control is not Control.END]),
    st.dictionaries(st.sampled_from([*OPTIONS, "text", "gaps", "sent", "x"]), values, max_size=3),
)
sounds = st.integers(0, 12_000).map(bytes)
pcm16_frames = st.lists(st.one_of(controls, controls, anything, sounds.map(bytearray)), max_size=6)

audio = st.one_of(st.binary(max_size=3000).map(lambda data: base64.b64encode(data).decode()), texts, values)
contents = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["input_text", "output_text", "input_audio", "text", "x"])},
        optional={"text": values, "audio": audio},
    ),
    max_size=2,
)
items = st.fixed_dictionaries(
    {"type": st.sampled_from(["message", "function_call", "x"])},
    optional={"role": st.sampled_from(["user", "assistant", "system", "x"]), "content": contents, "id": values},
)
detection = st.fixed_dictionaries(
    {"type": st.sampled_from(["server_vad", "semantic_vad", "x"])},
    optional={"threshold": values, "silence_duration_ms": values, "create_response": values},
)
sound_settings = st.fixed_dictionaries(
    {}, optional={"input": st.fixed_dictionaries({}, optional={"turn_detection": detection, "format": values})}
)
sessions = st.fixed_dictionaries(
    {}, optional={"instructions": values, "audio": st.one_of(sound_settings, values), "output_modalities": values}
)
fields = st.fixed_dictionaries(
    {},
    optional={
        "audio": audio,
        "item": st.one_of(items, values),
        "session": st.one_of(sessions, values),
        "response": values,
        "item_id": texts,
        "content_index": numbers,
        "audio_end_ms": numbers,
        "event_id": values,
    },
)
events = st.builds(lambda kind, about: json.dumps({**about, "type": kind}), st.sampled_from(CLIENT_EVENTS), fields)
realtime_frames = st.lists(st.one_of(events, events, events, anything), max_size=6)


def cases(count: int) -> settings:
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def send(client: ClientConnection, frames: list[Any], last: dict[str, Any]) -> None:
    for frame in frames:
        if isinstance(frame, bytearray):
            client.send(bytes(frame))
        elif isinstance(frame, bytes):
            client.send(frame, text=True)
        else:
            client.send(frame.encode(errors="surrogatepass"), text=True)
    client.send(json.dumps(last))


def expect_error(event: dict[str, Any]) -> None:
    error = event.get("error", event)
    assert isinstance(error["code"], str)
    assert error["message"]
    assert len(json.dumps(event, ensure_ascii=False)) < MAX_ERROR, "it quotes a line at most"
    assert "Traceback" not in error["message"]


def expect_close(closed: ConnectionClosed, frames: list[Any]) -> None:
    """Assert 1000 after the client's end, or 1007 or a lost WebSocket after text that is not UTF-8."""
    try:
        for frame in frames:
            if not isinstance(frame, bytearray):
                (frame if isinstance(frame, bytes) else frame.encode(errors="surrogatepass")).decode()
    except UnicodeDecodeError:
        return
    if closed.rcvd is None or closed.rcvd.code != 1000:
        raise AssertionError(f"closed by {closed.rcvd}") from closed


def no_constant(name: str) -> float:
    raise AssertionError(f"{name} must be JSON")


def try_pcm16(served: Served, frames: list[Any]) -> None:
    with connect(served.websocket + SHORT, max_size=None) as client:
        try:
            send(client, frames, {"type": "end"})
            while True:
                message = client.recv(timeout=30)
                if isinstance(message, str):
                    event = json.loads(message, parse_constant=no_constant)
                    if event["type"] == "error":
                        expect_error(event)
        except ConnectionClosed as closed:
            expect_close(closed, frames)


def try_realtime(served: Served, frames: list[Any]) -> None:
    with connect(served.websocket.replace("/ws/pcm16", "/v1/realtime"), max_size=None) as client:
        try:
            send(client, frames, {"type": "session.update", "session": {"type": "realtime"}, "event_id": "the last"})
            send(client, [], {"type": "unheard.of", "event_id": "the very last"})
            while True:
                event = json.loads(client.recv(timeout=30), parse_constant=no_constant)
                assert event["event_id"]
                if event["type"] == "error":
                    expect_error(event)
                    if event["error"]["event_id"] == "the very last":
                        return
        except ConnectionClosed as closed:
            expect_close(closed, frames)


def go_on(served: Served) -> None:
    """Assert that every slot is free afterwards, and that a conversation works."""
    wait_until_empty(served)
    answer = asyncio.run(talk(served.websocket, bytes(2 * 10240)))
    assert math.isclose(len(answer.pcm), 2 * 15360, abs_tol=8 * 15360)


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.long)])
def test_pcm16_answers_random_frames(served_turns: Served, count: int):
    cases(count)(given(frames=pcm16_frames)(lambda frames: try_pcm16(served_turns, frames)))()
    go_on(served_turns)


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.long)])
def test_realtime_answers_random_events(served_turns: Served, count: int):
    cases(count)(given(frames=realtime_frames)(lambda frames: try_realtime(served_turns, frames)))()
    go_on(served_turns)
