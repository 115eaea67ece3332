"""Groups of tests, which `./sca test` runs at the same time: `pytest --group NAME` runs one of them."""

from __future__ import annotations

import pytest

from commands.test import GROUPS

SERVERS = ("served", "served_turns", "served_barista", "running_pair")  # fixtures of servers that tests share


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--group", choices=GROUPS, help="run only the tests of this group")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of the group that `--group` names."""
    group = config.getoption("--group")
    if group:
        config.hook.pytest_deselected(items=[item for item in items if group_of(item) != group])
        items[:] = [item for item in items if group_of(item) == group]


def group_of(item: pytest.Item) -> str:
    """Return the group of a test: the server that it uses, else the folder turn/, else `other`.

    Groups run at the same time: tests of different groups share no server, no port and no build folder.
    """
    own = "turn" if item.path.parent.name == "turn" else "other"
    return next((server for server in SERVERS if server in getattr(item, "fixturenames", ())), own)
