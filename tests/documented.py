"""Collectors of the error codes and the numeric constants of the code, which tables of docs/ list."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache

from contract.errors import ErrorCode
from tests.conftest import ROOT

CODE_OF = {  # position of the code among the arguments of each callable that creates an error
    "ProtocolError": 0,
    "RealtimeError": 1,
    "RefusedError": 1,
    "Ended": 0,
    "error_event": 0,
    "end": 0,
    "_fail": 0,
    "give_up": 0,
    "parse_object": 2,
}
CODE = re.compile(r"[a-z]+(_[a-z]+)*")


@cache
def trees(*folders: str) -> tuple[ast.Module, ...]:
    """Return the syntax trees of the Python files of folders."""
    files = [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]
    return tuple(ast.parse(file.read_text(encoding="utf-8")) for file in files)


def error_codes() -> set[str]:
    """Return the error codes that the contract lists, and those that the bridge creates itself."""
    found = {code.value for code in ErrorCode}
    for tree in trees("frontend"):
        for node in ast.walk(tree):
            found |= set(_codes_of(node))
    return found - {"gone", "end"}  # a conversation that the client has ended is not an error


def _codes_of(node: ast.AST) -> Iterator[str]:
    """Yield the codes of a call that creates an error, of a default, or of an enum of codes."""
    if isinstance(node, ast.Call):
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        place = CODE_OF.get(name)
        given = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
        if place is not None and len(node.args) > place:
            given.append(node.args[place])
        yield from (text for value in given for text in _texts(value))
    elif isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "code" and node.value:
        yield from _texts(node.value)
    elif isinstance(node, ast.ClassDef) and node.name.endswith("Code"):
        for each in node.body:
            if isinstance(each, ast.Assign):
                yield from _texts(each.value)


def _texts(value: ast.expr) -> Iterator[str]:
    """Yield the codes among a constant, or the branches of a condition."""
    for each in [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]:
        if isinstance(each, ast.Constant) and isinstance(each.value, str) and CODE.fullmatch(each.value):
            yield each.value


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
