"""The language rules of CONTRIBUTING.md hold in the whole tree; tests/prose.py suggests a better wording."""

from __future__ import annotations

import pytest

from tests.prose import ROOT, check, check_python, check_text


def rules_of(source: str) -> list[str]:
    """Return the rules that a Python source breaks."""
    return [rule for _, _, rule, _ in check_python(source)]


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        ("L1", "TIMEOUT_S = 5.0  # that it has for it\n"),
        ("L1", "# Of a frame.\nFRAME_MS = 10\n"),
        ("L1", '"""For tests of the bridge."""\n'),
        ("L2", 'def f():\n    """Returns a row."""\n'),
        ("L2", 'def f():\n    """The row."""\n'),
        ("L2", '@property\ndef f(self):\n    """Whether a row is free."""\n'),
        ("L2", 'class Row:\n    """What a sequence has."""\n'),
        ("L3", "port = 1  # its port\n"),
        ("L4", "free = 1  # row that nobody uses\n"),
        ("L5", "# The engine is told of it.\n"),
        ("L5", "def _tell(event): ...\n"),
        ("L6", "# A batch of so\n# many rows.\n"),
        ("L8", "# The stage begins anew.\n"),
        ("L8", 'parser.add_argument("--cpu", help="the engine alone")\n'),
        ("L8", 'raise ValueError(f"{name} has a port of its own")\n'),
        ("L9", "# Zeros where there is no sound.\n"),
        ("L10", "MOST_ROWS = 8\n"),
        ("L10", "def f(least_rows): ...\n"),
        ("L11", 'raise ValueError(f"{count} rows came, expected {rows}")\n'),
        ("L11", 'raise ValueError(f"{name} is no WAV")\n'),
    ],
)
def test_wording_that_breaks_a_rule_is_found(rule, source):
    assert rules_of(source) == [rule]


@pytest.mark.parametrize(
    "source",
    [
        "TIMEOUT_S = 5.0  # timeout of a probe, in seconds\n",
        "# When the context is full, the oldest tick is evicted.\n",
        "rows = 8  # at most one row a sequence\n",
        "# `alone` is the name of a field.\n",
        '@property\ndef f(self):\n    """Duration of a frame, in seconds."""\n',
        'def f():\n    """Return the row of a sequence."""\n',
        'def test_f():\n    """A sequence keeps its row."""\n',
        'class Row:\n    """State of one sequence."""\n',
        'raise ValueError(f"expected {rows} rows, got {count}: raise engine.rows")\n',
        "import math\nx = math.most  # type: ignore[attr-defined]\n",
    ],
)
def test_plain_wording_passes(source):
    assert rules_of(source) == []


def test_comments_of_other_files_are_read():
    assert [rule for *_, rule, _ in check_text("a.toml", "port = 1  # of the bridge\n")] == ["L1"]
    assert [rule for *_, rule, _ in check_text("a.js", "/* The engine\n * alone. */\nx = 1 // its port\n")] == [
        "L8",
        "L3",
    ]
    assert [line for line, *_ in check_text("a.md", "```\nalone\n```\nThe bridge begins anew.\n")] == [4]


def test_the_tree_is_written_in_plain_english():
    findings = check(ROOT)
    assert not findings, "\n".join(map(str, findings))
