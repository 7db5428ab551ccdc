"""``condseg COMMAND`` calls the commands, under their names in help and messages."""

from __future__ import annotations

import importlib
import runpy
import sys
import tomllib
from pathlib import Path

import pytest

import condseg
from condseg.cli.main import COMMANDS, main
from condseg.cli.messages import command

ROOT = Path(__file__).parents[2]


def test_it_is_installed() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["condseg"].partition(":")
    assert getattr(importlib.import_module(module), function) is main


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_names_every_command(arguments: list[str], capsys) -> None:
    assert main(arguments) is None
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in COMMANDS)
    assert len(text.splitlines()) < 24


def test_version(capsys) -> None:
    assert main(["--version"]) is None
    assert capsys.readouterr().out == f"condseg {condseg.__version__}\n"


def test_an_unknown_command(capsys) -> None:
    assert main(["evl"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown command evl; did you mean eval?")
    assert main(["x"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown command x; There are train, eval, ")


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "train"])
def test_help_of_a_command(name: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/condseg", name, "--help"])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert f"usage: condseg {name} " in capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "completion"])
def test_a_command_by_a_script(name: str, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(ROOT / "tools" / "eval.py")])
    script = command(name).removeprefix("python ")
    assert f"condseg.cli.{name} import main" in (ROOT / script).read_text()
    monkeypatch.setattr(sys, "argv", ["condseg"])
    assert command(name) == f"condseg {name}"


def test_as_a_module(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["condseg", "models"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("condseg", run_name="__main__")
    assert "rtmdet_ins_m" in capsys.readouterr().out
