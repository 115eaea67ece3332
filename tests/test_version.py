"""The version of the project is the same in the package, the command line and the chart."""

from __future__ import annotations

import sys

import pytest
import yaml

from commands import VERSION
from commands.__main__ import main
from config.loader import read_toml
from tests.conftest import ROOT


def test_command_line_prints_the_version_of_the_project(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["./sca", "--version"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"sca {read_toml(ROOT / 'pyproject.toml')['project']['version']}\n"


def test_chart_deploys_images_of_the_version_of_the_project():
    chart = yaml.safe_load((ROOT / "deploy" / "helm" / "Chart.yaml").read_text())
    values = yaml.safe_load((ROOT / "deploy" / "helm" / "values.yaml").read_text())
    assert {chart["version"], chart["appVersion"], values["image"]["tag"]} == {VERSION}
