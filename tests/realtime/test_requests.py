"""Validation of the client's events: frames, fields, and the error that names what was expected."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from frontend.realtime.events import RealtimeError, parse, weight
from tests.realtime.talk import Talk
from tests.test_fuzz import events


@pytest.mark.parametrize("frame", ['{"type": "session.update", "event_id": "\\ud800"}', '{"type": "x", "y": NaN}'])
def test_frame_that_cannot_be_repeated_as_json_is_refused(frame: str):
    with pytest.raises(RealtimeError) as refused:
        parse(frame)
    assert refused.value.code == "invalid_json"


@pytest.mark.parametrize("deep", ['{"x":' * 700 + "1" + "}" * 700, "[" * 700 + "]" * 700])
def test_deeply_nested_frame_is_refused(deep: str):
    with pytest.raises(RealtimeError, match="at most 20 deep") as refused:
        parse('{"type": "session.update", "session": {"x": ' + deep + "}}")
    assert refused.value.code == "invalid_json"
    assert len(refused.value.message) < 500


@pytest.mark.parametrize(
    "metadata", [{"a": 1}, {"a": "x" * 513}, {"a" * 65: "x"}, {str(n): "" for n in range(17)}, "x", []]
)
def test_metadata_are_a_few_short_texts(talk: Talk, metadata: Any):
    with pytest.raises(RealtimeError, match="expected an object of at most 16 texts") as refused:
        talk.send("response.create", response={"metadata": metadata})
    assert refused.value.param == "response.metadata"


VAD = "session.audio.input.turn_detection"


@pytest.mark.parametrize(
    ("session", "param", "expected"),
    [
        ({"type": "transcription"}, "session.type", "'realtime'"),
        ({"output_modalities": ["video"]}, "session.output_modalities", "['audio'] or ['text']"),
        ({"instructions": "\0"}, "session.instructions", "Unicode text without NUL"),
        ({"max_output_tokens": 0}, "session.max_output_tokens", "'inf' or a whole number from 1 to 100000"),
        ({"audio": []}, "session.audio", "an object"),
        ({"audio": {"input": {"turn_detection": {"type": "x"}}}}, f"{VAD}.type", "'server_vad'"),
        ({"turn_detection": {"threshold": 2}}, f"{VAD}.threshold", "a number from 0.0 to 1.0"),
        ({"turn_detection": {"create_response": 1}}, f"{VAD}.create_response", "true or false"),
        ({"audio": {"output": {"format": {"type": "audio/pcm", "rate": 8}}}}, "session.audio.output.format.rate", "24"),
        ({"input_audio_format": ["pcm16"]}, "session.audio.input.format", "one of audio/pcm"),
        ({"audio": {"input": {"format": {"type": {}}}}}, "session.audio.input.format", "one of audio/pcm"),
    ],
)
def test_invalid_session_is_refused_with_the_expected_value(talk: Talk, session: dict, param: str, expected: str):
    with pytest.raises(RealtimeError) as refused:
        talk.send("session.update", session=session)
    assert (refused.value.code, refused.value.param) == ("invalid_value", param)
    assert refused.value.message.startswith(f"{param}: expected {expected}")
    assert ", got " in refused.value.message
    assert talk.received == []


def test_unknown_fields_and_voices_of_a_session_are_ignored(talk: Talk):
    talk.send("session.update", session={"tools": [{}], "speed": 2, "audio": {"output": {"voice": "nobody"}}})
    assert talk.received[-1]["session"]["audio"]["output"]["voice"] == "ethan"


def test_flat_names_of_the_beta_are_accepted(talk: Talk):
    session = {"modalities": ["text"], "turn_detection": None, "max_response_output_tokens": 7}
    talk.send("session.update", session={**session, "input_audio_format": "g711_ulaw"})
    about = talk.received[-1]["session"]
    assert (about["output_modalities"], about["max_output_tokens"]) == (["text"], 7)
    assert about["audio"]["input"]["turn_detection"] is None
    assert about["audio"]["input"]["format"] == {"type": "audio/pcmu"}


@pytest.mark.parametrize(
    ("response", "param"),
    [
        ({"input": []}, "response.input"),
        ({"conversation": "other"}, "response.conversation"),
        ({"max_output_tokens": 0}, "response.max_output_tokens"),
        ({"audio": 1}, "response.audio"),
        (5, "response"),
    ],
)
def test_invalid_response_is_refused(talk: Talk, response: Any, param: str):
    with pytest.raises(RealtimeError) as refused:
        talk.send("response.create", response=response)
    assert refused.value.param == param


TEXT = [{"type": "input_text", "text": "Hello."}]


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"role": "user", "content": []}, "item.content"),
        ({"role": "x", "content": TEXT}, "item.role"),
        ({"role": "user", "content": "Hello."}, "item.content"),
        ({"role": "user", "content": [{"type": "input_text", "text": 5}]}, "item.content.text"),
        ({"role": "system", "content": [{"type": "input_audio", "audio": ""}]}, "item.content.type"),
        ({"role": "user", "content": TEXT, "type": "function_call"}, "item.type"),
        ({"role": "user", "content": TEXT, "id": "x" * 65}, "item.id"),
        (None, "item"),
    ],
)
def test_invalid_item_is_refused(talk: Talk, item: Any, param: str):
    with pytest.raises(RealtimeError) as refused:
        talk.send("conversation.item.create", item=item if item is None else {"type": "message", **item})
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("event", "characters"),
    [
        ({"type": "session.update", "session": {"instructions": "x" * 3000}}, 3000),
        ({"type": "session.update", "session": {"tools": ["x" * 3000]}}, 150),
        ({"type": "conversation.item.create", "item": {"content": [{"text": "x" * 90}, {"audio": "A" * 9000}, 7]}}, 90),
        ({"type": "conversation.item.create", "item": 7}, 0),
        ({"type": "response.create", "response": {"instructions": ["x" * 20]}}, 0),
    ],
)
def test_weight_of_an_event_is_the_text_that_the_model_reads(event: dict, characters: int):
    frame = json.dumps(event)
    assert characters <= weight(parse(frame), len(frame)) <= characters + 10


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(frames=st.lists(st.one_of(events), max_size=6))
def test_any_event_is_carried_out_or_refused(frames: list[str]):
    talk = Talk()
    for frame in frames:
        try:
            talk.loop.run_until_complete(talk.conversation.receive(parse(frame)))
        except RealtimeError as error:
            assert len(error.message) < 500, "it quotes at most a line"  # noqa: PT017
    talk.loop.close()
