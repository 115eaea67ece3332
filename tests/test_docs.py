"""What the pages name is there."""

from __future__ import annotations

import re

import pytest

from tests.conftest import ROOT

PAGES = [
    "README.md",
    "README.ko.md",
    "CONTRIBUTING.md",
    *(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md")),
]
FOLDERS = "engine|export|frontend|launch|commands|config|tests|benchmarks|deploy|client|model_repository|backends"


@pytest.mark.parametrize("page", PAGES)
def test_links_and_files_exist(page):
    text = (ROOT / page).read_text()
    folder = (ROOT / page).parent
    links = [link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if "://" not in link]
    named = re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", text)
    missing = [link for link in links if not (folder / link).exists()]
    missing += [name for name in named if not (ROOT / name).exists()]
    assert not missing


def test_the_structures_functions_exist():
    """Each step of the path: a file, and classes and functions in it."""
    text = (ROOT / "docs" / "structure.md").read_text()
    pairs = re.findall(r"`([\w./]+\.py)`: `([\w.]+)`", text)
    assert len(pairs) > 7
    for file, name in pairs:
        source = (ROOT / file).read_text()
        owner, _, function = name.rpartition(".")
        assert not owner or f"class {owner}" in source, f"{file}: {name}"
        assert re.search(rf"(def|class) {function}\b", source), f"{file}: {name}"
    source = "\n".join(file.read_text() for file in (ROOT / "engine").rglob("*.py"))
    for name in re.findall(
        r"`(?:\w+\.)?(_?[a-z]\w+)`", text.split("## A tick of the engine")[1].split("## One turn")[0]
    ):
        assert re.search(rf"\b{name}\b", source), name


def test_the_readmes_are_short():
    for page in ("README.md", "README.ko.md"):
        assert len((ROOT / page).read_text().splitlines()) <= 150


def test_no_python_file_is_long_with_more_than_one_job():
    """The engine's largest file is one state machine."""
    lengths = {file: len(file.read_text().splitlines()) for file in (ROOT / "engine").rglob("*.py")}
    long = {file.relative_to(ROOT).as_posix() for file, length in lengths.items() if length > 300}
    assert long <= {"engine/turn/conversation.py"}
