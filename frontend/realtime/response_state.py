"""The states of a response, and the only transitions between them."""

from __future__ import annotations

from enum import Enum, auto


class ResponseState(Enum):
    """The progress of a response, in the order in which it is made."""

    QUEUED = auto()  # waits until the engine can answer
    REQUESTED = auto()  # the engine is to answer, and has not begun
    STREAMING = auto()  # the engine answers
    CANCELLING = auto()  # the client has cancelled, the engine has not confirmed the end
    DRAINING = auto()  # the engine has ended the answer, the last of the audio follows
    DONE = auto()


TRANSITIONS = {
    ResponseState.QUEUED: {ResponseState.REQUESTED, ResponseState.CANCELLING, ResponseState.DONE},
    ResponseState.REQUESTED: {
        ResponseState.QUEUED,  # the engine was busy
        ResponseState.STREAMING,
        ResponseState.CANCELLING,
        ResponseState.DONE,
    },
    ResponseState.STREAMING: {ResponseState.CANCELLING, ResponseState.DRAINING, ResponseState.DONE},
    ResponseState.CANCELLING: {ResponseState.DRAINING, ResponseState.DONE},
    ResponseState.DRAINING: {ResponseState.DONE},
    ResponseState.DONE: set[ResponseState](),
}


class IllegalTransitionError(RuntimeError):
    """A response cannot go from its state to another one."""


def transition(state: ResponseState, to: ResponseState) -> ResponseState:
    """Return the state `to`. Raises `IllegalTransitionError` unless it may follow `state`."""
    if to not in TRANSITIONS[state]:
        expected = ", ".join(sorted(each.name for each in TRANSITIONS[state])) or "no state"
        raise IllegalTransitionError(f"response in state {state.name}: expected {expected} next, got {to.name}")
    return to
