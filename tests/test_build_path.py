"""A build folder that Triton cannot use is refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands.console import UserError
from commands.serve import check_build_path
from tests.conftest import sca


@pytest.mark.parametrize("character", list(" ()[]{}'\"&$;|<>*?!`~#\\\n\t"))
def test_build_folder_with_a_character_of_the_shell_is_refused(character: str, tmp_path: Path):
    with pytest.raises(UserError) as refused:
        check_build_path(tmp_path / f"a{character}b")
    assert repr(character) in str(refused.value)


@pytest.mark.parametrize("name", ["build", "sca-1.0_x", "빌드", "a@b+c=d,e%f:g"])
def test_build_folder_with_other_characters_is_accepted(name: str, tmp_path: Path):
    check_build_path(tmp_path / name)


def test_serve_names_the_character_in_one_line(tmp_path: Path):
    run = sca("serve", "--build", tmp_path / "my build")
    assert run.returncode == 1
    assert "my build' with ' '; choose another folder: --build FOLDER" in run.stderr
    assert len(run.stderr.splitlines()) == 1
