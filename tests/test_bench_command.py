"""`./sca bench NAME` accepts and explains the arguments of that benchmark only."""

from __future__ import annotations

import argparse

import pytest

from commands import bench
from commands.benches import numbers
from commands.console import UserError


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    """Return the parser of `./sca bench`."""
    made = argparse.ArgumentParser()
    bench.add_arguments(made)
    return made


@pytest.mark.parametrize(
    ("name", "shown", "hidden"),
    [
        ("engine", ["--age-s", "--baseline"], ["--wav", "--babble", "--seconds"]),
        ("turn-bridge", ["--wav", "--beside", "--seconds"], ["--age-s", "--idle"]),
        ("understanding", ["FOLDER", "--babble", "--limit"], ["--original", "--ticks"]),
        ("move", ["--build"], ["--conversations"]),
    ],
)
def test_help_of_a_benchmark_shows_its_own_arguments(parser, capsys, name, shown, hidden):
    with pytest.raises(SystemExit) as ended:
        parser.parse_args([name, "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    assert [option for option in shown if option not in text] == []
    assert [option for option in hidden if option in text] == []


@pytest.mark.parametrize("arguments", [["engine", "--idle", "3"], ["perf-analyzer"], ["understanding"], ["sing"]])
def test_arguments_of_another_benchmark_and_missing_ones_are_refused(parser, capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(arguments)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "0", "1,-2", "two"])
def test_numbers_of_conversations_are_above_zero(text):
    with pytest.raises(UserError, match="--conversations: expected numbers above 0 such as 1,2,4, got"):
        numbers(text)
    assert numbers("1,2,4") == [1, 2, 4]
