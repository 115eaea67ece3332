"""Short-lived keys."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request

import openai
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from contract.errors import ErrorCode
from frontend import ephemeral_keys
from frontend.access import Caller, RefusedError
from tests.bridges import KEYS, RunningBridge, bearer
from tests.conftest import Served


def test_short_lived_key_opens_the_session_that_it_was_made_for(locked: RunningBridge):
    client = openai.OpenAI(base_url=f"{locked.http}/v1", api_key=KEYS[0])
    secret = client.realtime.client_secrets.create(
        session={"type": "realtime", "instructions": "Be brief."},
        expires_after={"anchor": "created_at", "seconds": 60},
    )
    assert secret.value.startswith("ek_")
    assert 50 <= secret.expires_at - time.time() <= 61
    assert secret.session.instructions == "Be brief."
    with openai.OpenAI(base_url=f"{locked.http}/v1", api_key=secret.value).realtime.connect(model="any") as connection:
        created = connection.recv()
        assert created.session.instructions == "Be brief."
    with pytest.raises(openai.AuthenticationError, match="only the holder of an API key makes others"):
        openai.OpenAI(base_url=f"{locked.http}/v1", api_key=secret.value).realtime.client_secrets.create()


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        (b"{", "expected JSON", None),
        (b"[]", "expected an object", None),
        (b'{"expires_after": {"seconds": 5}}', "expected 10 to 7200 seconds", "expires_after"),
        (b'{"expires_after": {"anchor": "x"}}', "expected created_at", "expires_after.anchor"),
        (b'{"session": {"instructions": 7}}', "instructions", "session.instructions"),
        (b'{"session": []}', "expected an object", "session"),
        (b" " * 300_000, "expected at most 262144 bytes", None),
    ],
)
def test_bad_request_is_refused_with_what_was_expected(locked: RunningBridge, body, message, param):
    request = urllib.request.Request(
        f"{locked.http}/v1/realtime/client_secrets", data=body, headers=bearer(KEYS[0]), method="POST"
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert refused.value.code in (400, 413)
    error = json.load(refused.value)["error"]
    assert message in error["message"]
    assert error["param"] == param


def test_expired_short_lived_key_opens_no_session(served: Served):
    """Also if no key is required: the key was made for a session that another one must not replace."""
    with pytest.raises(InvalidStatus) as refused:
        connect(
            f"{served.websocket.removesuffix('/ws/pcm16')}/v1/realtime", additional_headers=bearer("ek_of-yesterday")
        )
    assert refused.value.response.status_code == 401


def test_keys_of_one_caller_are_bounded(monkeypatch):
    monkeypatch.setattr(ephemeral_keys, "MAX_OWN_KEYS", 3)
    keys = ephemeral_keys.EphemeralKeys()
    for _ in range(3):
        keys.make(Caller("one"), 60, {})
    with pytest.raises(RefusedError) as refused:
        keys.make(Caller("one"), 60, {})
    assert refused.value.code is ErrorCode.TOO_MANY_SECRETS
    assert keys.make(Caller("another"), 60, {}).value
