"""Controls, events and errors survive the way between bridge and engine."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from contract.controls import (
    CONTROLS,
    Controls,
    ForgetControl,
    ItemControl,
    OutOfBandControl,
    Part,
    Role,
    TruncateControl,
)
from contract.errors import ErrorCode, coded, decode
from contract.events import (
    AnswerDone,
    Committed,
    Error,
    Event,
    Interrupted,
    SpeechStarted,
    StateChanged,
    UnknownEvent,
    event_of,
)
from contract.parameters import ControlError, parameters_of, take_controls
from contract.state import Entry, State
from tests.conftest import ROOT

ALL_CONTROLS = Controls(
    reset=True,
    turn={"detection": "manual"},
    cancel=True,
    clear=True,
    truncate=TruncateControl(3, 400),
    forget=ForgetControl(2, Part.ANSWER),
    items=(ItemControl(Role.USER, "안녕하세요"), ItemControl(Role.SYSTEM, "Be brief.")),
    listen=17,
    message="a latte",
    commit=True,
    respond=True,
    out_of_band=OutOfBandControl("Summarise.", {"speech": False}),
    transcript=True,
)
EVENTS = [
    SpeechStarted(at_ms=320),
    Committed(at_ms=640, turn=1, audio_start_ms=100, audio_end_ms=600),
    Committed(at_ms=640, turn=2),
    AnswerDone(at_ms=960, turn=1, spoken_ms=240, text="Sure.", reason="end", input_tokens=9, input_audio_tokens=4),
    Interrupted(at_ms=960, turn=1, by="move", heard_ms=80, heard_text="Su", out_of_band=True),
    Error(at_ms=0, code=ErrorCode.ANSWER_ACTIVE, message="expected no answer in progress"),
    StateChanged(at_ms=320, state=State(entries=(Entry(1, "user", "", 0, 300),), open_from_ms=310)),
]


def test_every_control_has_a_value_in_the_round_trip():
    assert all(getattr(ALL_CONTROLS, name) != getattr(Controls(), name) for name in CONTROLS)


def test_controls_survive_request_parameters():
    parameters = parameters_of(ALL_CONTROLS)
    assert all(isinstance(value, (bool, int, str)) for value in parameters.values())
    assert take_controls(parameters, 320) == ALL_CONTROLS
    assert parameters == {}
    assert parameters_of(Controls()) == {}


@pytest.mark.parametrize(
    "parameters",
    [
        {"listen": 321},
        {"listen": "now"},
        {"commit": 0},
        {"clear": 1},
        {"message": "  "},
        {"message": "\ud800"},
        {"items": "[1]"},
        {"items": json.dumps([{"role": "robot", "text": "hi"}])},
        {"items": json.dumps([{"role": "user", "text": "hi"}] * 17)},
        {"truncate": json.dumps({"turn": -1, "heard_ms": 0})},
        {"forget": json.dumps({"turn": 1, "part": "both"})},
        {"turn": "[]"},
        {"out_of_band": json.dumps({"cancel": 1})},
        {"out_of_band": "[" * 10_000},
    ],
)
def test_invalid_control_is_refused_by_name(parameters):
    (name,) = parameters
    with pytest.raises(ControlError, match=rf"^{name}.*expected .*got "):
        take_controls(dict(parameters), 320)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.type)
def test_events_survive_json(event: Event):
    assert event_of(json.loads(json.dumps(event.to_json()))) == event


def test_event_of_a_newer_engine_passes_unchanged():
    for found in ({"type": "new", "at_ms": 1, "x": 2}, {"type": "text", "at_ms": 1, "text": "a", "x": 2}):
        event = event_of(found)
        assert isinstance(event, UnknownEvent)
        assert event.to_json() == found


def test_error_code_survives_the_text_of_a_triton_error():
    text = coded(ErrorCode.FULL, "all 8 slots hold a conversation:\ntry again later")
    assert decode(f"in ensemble 'duplex', {text}") == (
        ErrorCode.FULL,
        "all 8 slots hold a conversation:\ntry again later",
    )
    assert decode("[unheard_of] what") == (ErrorCode.TICK_FAILED, "[unheard_of] what")
    assert decode("Socket closed") == (ErrorCode.TICK_FAILED, "Socket closed")


def test_contract_imports_neither_torch_nor_a_network():
    imports = "import contract.events, contract.parameters, sys"
    program = f"{imports}; print([name for name in ('torch', 'grpc', 'fastapi') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
