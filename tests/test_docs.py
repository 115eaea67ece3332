"""Promises of the documentation: links, names, tables and transcripts agree with the code."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from config.loader import read_toml
from config.settings import DEFAULTS
from contract.controls import CONTROLS
from contract.errors import ErrorCode
from contract.events import EVENT_TYPES
from frontend.session.ended import CLOSE_CODES
from tests.conftest import ROOT
from tests.documented import FIXED, INTERNAL, constants, error_codes, statuses

DOCS = ROOT / "docs"
PAGES = [
    *("README.md", "README.ko.md", "CONTRIBUTING.md", "CHANGELOG.md"),
    *("benchmarks/RESULTS.md", "checkpoints/barista/README.md", "training/README.md"),
    *(f"docs/{file.name}" for file in sorted(DOCS.glob("*.md"))),
]
FOLDERS = "backends|benchmarks|checkpoints|client|commands|config|contract|deploy|docs|engine|export|frontend|launch"
FOLDERS += "|model_repository|tests|training"
PROTOCOLS = ("websocket.md", "realtime.md", "triton.md", "controls-and-events.md")
MAX_README_LINES = 110
MAX_CELL = 260  # characters of a cell of a table
MAX_LINES = 300  # lines of a Python file


@cache
def page(name: str) -> str:
    """Return the text of a page of docs/."""
    return (DOCS / name).read_text(encoding="utf-8")


def prose(text: str) -> str:
    """Return a page without its code blocks."""
    return re.sub(r"(?ms)^```.*?^```", "", text)


def tables(text: str) -> Iterator[list[list[str]]]:
    """Yield the tables of a page, each as rows of cells; the row of dashes is left out."""
    for block in re.findall(r"(?m)(?:^\|.*\|$\n?)+", prose(text)):
        lines = [line for line in block.splitlines() if not re.fullmatch(r"[|\s:-]+", line) or "-" not in line]
        yield [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def rows_of(text: str, head: str) -> list[list[str]]:
    """Return the rows, without the heading, of the table whose first heading is `head`."""
    return next(rows[1:] for rows in tables(text) if rows[0][0] == head)


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub writes them."""
    heads = re.findall(r"(?m)^#+ (.+)$", prose(path.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("name", PAGES)
def test_links_anchors_and_files_exist(name):
    path = ROOT / name
    text = path.read_text(encoding="utf-8")
    missing = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
        file, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(link)
    named = re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", text)
    missing += [each for each in named if not (ROOT / each).exists() and not each.startswith("build/")]
    assert not missing


@pytest.mark.parametrize("name", [name for name in PAGES if name != "CHANGELOG.md"])
def test_settings_that_a_page_names_exist(name):
    known = {f"{section}.{key}" for section, keys in read_toml(DEFAULTS).items() for key in keys}
    sections = "|".join(read_toml(DEFAULTS))
    named = set(re.findall(rf"`((?:{sections})\.[a-z_]+)(?: = [^`]+)?`", (ROOT / name).read_text(encoding="utf-8")))
    assert {name for name in named if not name.endswith(".py")} <= known


def test_page_of_settings_repeats_the_comments_of_the_default_file():
    section, comments = "", {}
    for line in DEFAULTS.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"\[(\w+)\]", line):
            section = match[1]
        elif match := re.match(r"(\w+) = .+? +# (.+)$", line):
            comments[f"`{section}.{match[1]}`"] = match[2]
    rows = [row for table in tables(page("settings.md")) for row in table[1:]]
    assert {row[0]: re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", row[2]) for row in rows} == comments


def test_every_page_is_linked_from_another():
    linked = set()
    for name in PAGES:
        text = (ROOT / name).read_text(encoding="utf-8")
        linked |= {((ROOT / name).parent / link).resolve() for link in re.findall(r"\]\(([^)#\s]+\.md)", text)}
    assert {file for file in DOCS.glob("*.md") if file not in linked} == set()


def test_functions_of_the_structure_exist():
    """Each step of the path: a file, and classes and functions in it."""
    text = page("structure.md")
    pairs = re.findall(r"`([\w./]+\.py)`: `([\w.]+)`", text)
    assert len(pairs) > 7
    for file, name in pairs:
        source = (ROOT / file).read_text(encoding="utf-8")
        owner, _, function = name.rpartition(".")
        assert not owner or f"class {owner}" in source, f"{file}: {name}"
        assert re.search(rf"(def|class) {function}\b", source), f"{file}: {name}"
    source = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "engine").rglob("*.py"))
    tick = text.split("## A tick of the engine")[1].split("## One turn")[0]
    for name in re.findall(r"`(?:\w+\.)?(_?[a-z]\w+)`", tick):
        assert re.search(rf"\b{name}\b", source), name


def test_structure_lists_each_file_of_the_bridge_and_of_the_dialect():
    listed = {}
    for folder, table in re.findall(r"(?ms)^### `([\w/]+/)`\n\n(.*?)\n(?=\n|\Z)", page("structure.md")):
        listed[folder] = {row[0].strip("`") for row in next(tables(table))[1:]}
    folders = {f"{file.parent.relative_to(ROOT).as_posix()}/" for file in (ROOT / "frontend").rglob("*.py")}
    assert set(listed) == {*folders, "engine/turn/"}
    for folder, files in listed.items():
        assert files == {file.name for file in (ROOT / folder).glob("*.py")} - {"__init__.py"}, folder


@pytest.mark.parametrize("name", ["README.md", "README.ko.md"])
def test_readme_is_short(name):
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= MAX_README_LINES


def test_korean_readme_matches_section_by_section():
    """Headings, code blocks, pictures, rows of tables and links, in the same order."""

    def shape(text: str) -> list[str]:
        blocks = [re.sub(r"\s*#.*", "", block) for block in re.findall(r"(?ms)^```.*?^```", text)]
        marks = re.findall(r"(?m)^#+ |^\||^!\[|\]\([^)]+\)", prose(text))
        return [mark for mark in marks if "README" not in mark or "/" in mark] + blocks

    assert shape((ROOT / "README.ko.md").read_text(encoding="utf-8")) == shape(
        (ROOT / "README.md").read_text(encoding="utf-8")
    )


@pytest.mark.parametrize("name", PROTOCOLS)
def test_page_of_a_protocol_begins_with_the_transcript_of_an_interruption(name):
    first = page(name).split("\n## ")[1]
    assert first.startswith("One turn, with an interruption")
    assert "interrupted" in first or "turn_detected" in first


@pytest.mark.parametrize("name", PROTOCOLS)
def test_lines_of_a_transcript_are_json_with_known_events(name):
    known = {row.strip("`") for row in _documented_events()}
    for block in re.findall(r"(?ms)^```json lines\n(.*?)^```", page(name)):
        for line in map(json.loads, block.splitlines()):
            server = line.get("server")
            events = line.get("EVENTS", [server] if isinstance(server, dict) else [])
            for event in events:
                assert event["type"] in known or name == "realtime.md", event
                assert isinstance(event["type"], str)


def _documented_events() -> list[str]:
    names = [row[0] for row in rows_of(page("controls-and-events.md"), "event")]
    extra = rows_of(page("websocket.md"), "`type` of a text frame out, beyond the shared events")
    return [each for cell in [*names, *(row[0] for row in extra)] for each in cell.split(", ")]


def test_table_of_controls_has_each_in_the_order_of_the_contract():
    assert [row[0].strip("`") for row in rows_of(page("controls-and-events.md"), "control")] == list(CONTROLS)


def test_table_of_events_has_each_of_the_contract():
    assert set(EVENT_TYPES) <= {name.strip("`") for name in _documented_events()}


def test_table_of_errors_has_each_code_of_the_code_and_no_other():
    documented = [row[0].strip("`") for row in rows_of(page("errors.md"), "code")]
    assert documented == sorted(documented)
    assert len(documented) == len(set(documented))
    assert set(documented) == error_codes()


def test_table_of_errors_has_the_status_and_the_close_code_of_each():
    rows = {row[0].strip("`"): row for row in rows_of(page("errors.md"), "code")}
    assert len(statuses()) > 5
    for code, status in statuses():
        assert rows[code][1] == str(status), code
    for error, close_code in CLOSE_CODES.items():
        assert str(close_code.value) in rows[error.value][2] or error is ErrorCode.PROMPT_TOO_LONG, error


def test_error_codes_that_pages_name_are_in_the_table_of_errors():
    documented = {row[0] for row in rows_of(page("errors.md"), "code")}
    for row in rows_of(page("limits.md"), "limit"):
        for code in re.findall(r"`([a-z]+_[a-z_]+)`", row[3]):
            assert f"`{code}`" in documented or code in ("answer_done",), row


def test_table_of_limits_has_the_values_of_the_code():
    defaults = {
        f"{section}.{key}": value for section, keys in read_toml(DEFAULTS).items() for key, value in keys.items()
    }
    known = constants("frontend", "contract", "config")
    names = []
    for limit, value, setting, _ in rows_of(page("limits.md"), "limit"):
        if limit.startswith("**"):
            continue
        number = float(re.match(r"[\d,.]+", value)[0].rstrip(".").replace(",", ""))
        names.append(limit)
        if setting:
            assert number == defaults[setting.strip("`")], limit
        else:
            assert number in known[FIXED[limit]], limit
    assert set(FIXED) <= set(names)


def test_every_bound_of_the_code_is_in_the_table_of_limits():
    known = constants("frontend", "contract")
    bounds = {name for name in known if re.match(r"MAX_", name)}
    assert bounds <= {*FIXED.values(), *INTERNAL}


@pytest.mark.parametrize("name", PAGES)
def test_cells_of_tables_are_short(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    long = [cell for rows in tables(text) for row in rows for cell in row if len(cell) > MAX_CELL]
    assert not long


def test_metrics_that_the_monitor_page_names_exist():
    sources = [*(ROOT / "frontend").rglob("*.py"), *(ROOT / "model_repository").rglob("*.py")]
    source = "\n".join(file.read_text(encoding="utf-8") for file in sources)
    for name in set(re.findall(r"\b(sca_[a-z_]+)\b", page("monitor.md"))):
        family = re.sub("_(total|bucket|sum|count)$", "", name)
        assert re.search(rf"\b{family}(_total|_bucket)?\b", source), name


def test_changelog_begins_with_the_version_of_the_project():
    version = read_toml(ROOT / "pyproject.toml")["project"]["version"]
    first = re.search(r"(?m)^## (\S+) - (\S+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    assert first
    assert first[1] == version
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", first[2])


def test_no_python_file_has_more_than_300_lines():
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = [ROOT / name for name in listed.stdout.split()]
    lengths = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in files if file.exists()}
    assert lengths
    long = {file.relative_to(ROOT).as_posix() for file, length in lengths.items() if length > MAX_LINES}
    assert not long
