"""Metrics and log lines of a bridge."""

from __future__ import annotations

import base64
import contextlib
import json
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.bridges import KEYS, RunningBridge, bearer, lines_about, metrics
from tests.conftest import Served
from tests.sockets import event, wait_until_empty


def test_text_that_is_not_utf8_closes_its_websocket_without_an_error_of_the_bridge(locked: RunningBridge):
    with connect(locked.websocket, additional_headers=bearer(KEYS[1])) as client:
        client.send(b"\xff\xfe", text=True)
        with pytest.raises(ConnectionClosed) as closed:
            list(client)
    assert closed.value.rcvd
    assert closed.value.rcvd.code == 1007
    assert "Traceback" not in locked.log.read_text()


def test_metrics_and_log_report_a_conversation_without_its_words(locked: RunningBridge, pcm):
    wait_until_empty(locked)
    with connect(locked.websocket, additional_headers=bearer(KEYS[1])) as client:
        opened = event(client, "conversation.opened")
        client.send(json.dumps({"type": "options", "system_prompt": "a secret"}))
        client.send(pcm[:5120].tobytes())
        event(client, "text")
        assert metrics(locked)["sca_bridge_conversations"] == 1
        client.send(json.dumps({"type": "end"}))
        with contextlib.suppress(ConnectionClosed):
            while True:
                client.recv(timeout=20)
    wait_until_empty(locked)
    found = metrics(locked)
    assert found["sca_bridge_conversations"] == 0
    assert found['sca_bridge_ended_total{protocol="pcm16",why="end"}'] >= 1
    assert found['sca_bridge_refused_total{code="invalid_api_key"}'] >= 1
    assert found["sca_bridge_tick_seconds_count"] >= 2
    deadline = time.monotonic() + 20
    while not (lines := lines_about(locked, opened["id"])) or lines[-1]["event"] != "ended":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert [line["event"] for line in lines] == ["opened", "ended"]
    assert lines[0]["caller"].startswith("key ")
    assert (lines[-1]["why"], lines[-1]["ticks"]) == ("end", 2)
    assert "a secret" not in locked.log.read_text()


def test_metrics_report_the_audio_that_waits_of_a_realtime_client(served_turns: Served):
    """Three seconds of sound at once: what waits behind the first tick is 2.7 s, behind the second 2.4 s."""
    name = "sca_bridge_behind_seconds"
    before = metrics(served_turns)
    with connect(served_turns.websocket.replace("/ws/pcm16", "/v1/realtime")) as client:
        event(client, "session.created")
        audio = base64.b64encode(bytes(3 * 24_000 * 2)).decode()
        client.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
        deadline = time.monotonic() + 20
        while (found := metrics(served_turns))[f"{name}_count"] < before[f"{name}_count"] + 9:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    waited_s = found[f"{name}_sum"] - before[f"{name}_sum"]
    assert 10 < waited_s < 14, "the sum of 2.7, 2.4 and so on"


def test_metrics_require_a_key(locked: RunningBridge):
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{locked.http}/metrics")
