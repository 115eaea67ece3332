"""Collectors of the error codes and the numeric constants of the code, which tables of docs/ list."""

from __future__ import annotations

import ast
from collections import defaultdict
from functools import cache
from http import HTTPStatus

from contract.errors import ErrorCode
from tests.conftest import ROOT

FIXED = {
    "bytes of a path with its query": "MAX_TARGET",
    "bytes of a header": "MAX_HEADER",
    "seconds until the first whole request": "REQUEST_TIMEOUT_S",
    "bytes of an HTTP body": "MAX_BODY",
    "seconds until an HTTP body has arrived": "BODY_S",
    "bytes that the kernel buffers for a client": "SEND_BUFFER",
    "short-lived keys that are valid": "MAX_KEYS",
    "short-lived keys of one client": "MAX_OWN_KEYS",
    "seconds that a short-lived key is valid, at least": "MIN_S",
    "seconds that a short-lived key is valid, at most": "MAX_S",
    "characters of an API key, at least": "MIN_KEY",
    "characters of a text frame of `/ws/pcm16`": "MAX_TEXT",
    "characters of an event of `/v1/realtime`, as a multiple of `bridge.max_frame_bytes`": "FRAME_CHARACTERS",
    "depth of an event's JSON": "MAX_DEPTH",
    "bytes of unread input": "MAX_BYTES",
    "seconds of text in one burst": "BURST_S",
    "characters that the model does not read and that count as one": "UNREAD_CHARACTERS",
    "seconds of audio that wait in `/v1/realtime`": "MAX_HELD_S",
    "milliseconds of audio of a commit, at least": "MIN_COMMIT_MS",
    "characters of a message or of a user's item": "MAX_TYPED",
    "characters of a system prompt or of instructions": "MAX_PROMPT_CHARACTERS",
    "items in one tick": "MAX_ITEMS",
    "items of a session's list": "MAX_ITEMS",
    "texts of a response's metadata": "MAX_METADATA",
    "characters of a name of metadata": "MAX_METADATA_NAME",
    "characters of a text of metadata": "MAX_METADATA_VALUE",
    "out-of-band responses that wait": "MAX_OUT_OF_BAND",
    "gaps in one `playback`": "MAX_GAPS",
    "events that wait for a client": "MAX_MESSAGES",
    "bytes of events that wait for a client": "MAX_BYTES",
    "characters of an item's id": "MAX_ITEM_ID",
    "characters of an event's id": "MAX_EVENT_ID",
    "parts of an item": "MAX_PARTS",
    "`max_output_tokens` of a session or response": "MAX_OUTPUT_TOKENS",
    "bytes of messages that are kept for a reconnect": "MAX_KEPT_BYTES",
    "ticks that follow `end`": "MAX_TICKS_AFTER_END",
    "candidates in an offer": "MAX_CANDIDATES",
    "media sections in an offer": "MAX_SECTIONS",
    "seconds to connect": "CONNECTS_S",
    "seconds of audio ahead of time": "MAX_AHEAD_S",
    "unread events of a client": "MAX_WAITING",
    "bytes of unread events of a client": "MAX_WAITING_BYTES",
    "SCTP streams of a client": "MAX_STREAMS",
    "fragments of an unfinished message": "MAX_FRAGMENTS",
}
"""The constant of each limit that is not a setting."""
INTERNAL = {
    *("MAX_BUFFERED", "MAX_DIGITS", "MAX_FAILURES", "MAX_HELD_BYTES", "MAX_INTEGER", "MAX_LOST_S", "MAX_MODEL"),
    *("MAX_NATURAL", "MAX_OF_CONVERSATION", "MAX_SEED", "MAX_SEQUENCE_ID", "MAX_SPOKEN", "MAX_STRETCHES"),
}
"""Bounds of the code that a client cannot reach, or that follow from a limit of the table."""


@cache
def trees(*folders: str) -> tuple[ast.Module, ...]:
    """Return the syntax trees of the Python files of folders."""
    files = [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]
    return tuple(ast.parse(file.read_text(encoding="utf-8")) for file in files)


def error_codes() -> set[str]:
    """Return the codes of the contract, and the reasons of ends that reach no client as an error."""
    found = {code.value for code in ErrorCode}
    for tree in trees("frontend"):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Ended":
                found |= {str(each.value) for each in node.args[:1] if isinstance(each, ast.Constant)}
    return found - {"gone", "end"}  # a conversation that the client has ended is not an error


@cache
def constants(*folders: str) -> dict[str, set[float]]:
    """Return the values of each numeric constant of the modules of folders, by its name."""
    found: dict[str, set[float]] = defaultdict(set)
    for tree in trees(*folders):
        for node in tree.body:
            if isinstance(node, ast.Assign):
                for name, value in _pairs(node.targets[0], node.value):
                    if isinstance(name, ast.Name) and (number := _number(value)) is not None:
                        found[name.id].add(number)
    return found


def _pairs(target: ast.expr, value: ast.expr) -> list[tuple[ast.expr, ast.expr]]:
    """Return the targets and values of an assignment, `a, b = 1, 2` as two."""
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        return list(zip(target.elts, value.elts, strict=True))
    return [(target, value)]


def _number(value: ast.expr) -> float | None:
    """Return the number of an expression of numbers; None for any other expression."""
    known = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.Constant, ast.operator, ast.unaryop)
    if not all(isinstance(node, known) for node in ast.walk(value)):
        return None
    number = eval(compile(ast.Expression(value), "", "eval"))
    return float(number) if isinstance(number, (int, float)) and not isinstance(number, bool) else None


def statuses() -> set[tuple[str, int]]:
    """Return the code and the HTTP status of each refusal whose code and status are literals."""
    found = set()
    for tree in trees("frontend"):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "RefusedError":
                names = [getattr(each, "attr", "") for each in node.args[:2]]
                if len(names) == 2 and names[0] in HTTPStatus.__members__ and names[1] in ErrorCode.__members__:
                    found.add((ErrorCode[names[1]].value, HTTPStatus[names[0]].value))
    return found
