"""The bridge's modules import only lower layers, and no protocol imports another; the small bridge is small."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

from tests.conftest import ROOT

LAYERS = (  # layers from the lowest: a module may import its own layer and lower ones
    ("audio", "metrics", "tick", "tracer"),
    ("access", "body", "ephemeral_keys", "floor", "log", "triton"),
    ("admission", "server", "headers", "connections"),
    ("session",),
    ("plugins",),
    ("failover", "recording", "traces"),
    ("bridge", "handshake"),
    ("pcm16", "realtime"),
    ("webrtc", "page"),
    ("app",),
)
PROTOCOLS = ("pcm16", "realtime")
OPTIONAL = ("failover", "realtime", "recording", "traces", "webrtc", "page")
MAX_SMALL_BRIDGE_LINES = 1500
SMALL_BRIDGE = ("app", "bridge", "handshake", "access", "admission", "session", "pcm16")  # the others are shared tools


@cache
def imports_of(module: Path) -> frozenset[str]:
    """Return the modules of `frontend` that a file imports, without imports for type checking only."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    checked = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    skipped = {id(each) for node in checked for each in ast.walk(node)}
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in skipped:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {str(node.module), *names}
        elif isinstance(node, ast.Import) and id(node) not in skipped:
            found |= {alias.name for alias in node.names}
    return frozenset(name for name in found if name.startswith("frontend"))


def modules() -> dict[str, Path]:
    """Return all modules of `frontend` by their names."""
    files = (ROOT / "frontend").rglob("*.py")
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def part_of(module: str) -> str:
    """Return the file or folder of `frontend` that a module belongs to."""
    return (*module.split("."), "")[1]


def imported(module: Path) -> set[str]:
    """Return the modules of `frontend` that a file imports, as files."""
    return imports_of(module) & modules().keys()


def test_every_module_has_a_layer():
    assert {part_of(name) for name in modules()} - {""} == {part for layer in LAYERS for part in layer}


def test_no_import_points_to_a_higher_layer():
    rank = {part: number for number, layer in enumerate(LAYERS) for part in layer}
    wrong = [
        f"{name} imports {other}"
        for name, file in modules().items()
        for other in imported(file)
        if part_of(name) and part_of(other) and rank[part_of(other)] > rank[part_of(name)]
    ]
    assert not wrong


def test_no_protocol_imports_another():
    wrong = [
        f"{name} imports {other}"
        for name, file in modules().items()
        for other in imported(file)
        if {part_of(name), part_of(other)} <= set(PROTOCOLS) and part_of(name) != part_of(other)
    ]
    assert not wrong


def small_bridge() -> set[str]:
    """Return the modules that the application imports, directly or not."""
    known, found, waiting = modules(), set(), ["frontend.app"]
    while waiting:
        name = waiting.pop()
        if name not in found and part_of(name):
            found.add(name)
            waiting += imported(known[name])
    return found


def test_small_bridge_imports_no_optional_part():
    assert not {name for name in small_bridge() if part_of(name) in OPTIONAL}


def test_small_bridge_has_few_lines():
    names = [name for name in small_bridge() if part_of(name) in SMALL_BRIDGE]
    lines = {name: len(modules()[name].read_text(encoding="utf-8").splitlines()) for name in names}
    assert sum(lines.values()) <= MAX_SMALL_BRIDGE_LINES, lines


def test_no_file_of_the_bridge_is_long():
    lengths = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in modules().values()}
    assert not {file.relative_to(ROOT).as_posix(): length for file, length in lengths.items() if length > 300}
