"""Prints what a shell needs to complete commands, options and values with Tab.

condseg completion bash > ~/.local/share/bash-completion/completions/condseg
condseg completion zsh > ~/.zfunc/_condseg          # a folder of $fpath, before compinit

The script holds all names, so that completing starts no Python. Repeat it after an update.
"""

import argparse
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any, Literal, get_args, get_origin

from condseg.cli.messages import command_parser
from condseg.errors import user_errors

SHELLS = ("bash", "zsh", "fish", "tcsh", "powershell")
FILES = ("checkpoint", "ckpt_path", "init_from", "data", "images", "annotations", "depth", "inputs")
"""Options whose value is a path."""


def parser() -> argparse.ArgumentParser:
    """Of the command's options."""
    parser = command_parser(__doc__)
    parser.add_argument("shell", choices=SHELLS)
    return parser


def main(args: Sequence[str] | None = None) -> None:
    shell = parser().parse_args(args).shell
    with user_errors():
        print(script(shell))


def script(shell: str) -> str:
    """The completion of ``condseg`` for a shell."""
    import shtab

    from condseg.cli.main import COMMANDS

    root = argparse.ArgumentParser("condseg", add_help=False)
    root.add_argument("--help", action="help")
    root.add_argument("--version", action="version")
    commands = root.add_subparsers()
    for name, text in COMMANDS.items():
        parent = import_module(f"condseg.cli.{name}").parser()
        for action in parent._actions:
            _complete(action)
        commands.add_parser(name, help=text, parents=[parent], add_help=False)
    names = " ".join(_configs())
    own = f'_condseg_config_file() {{ compgen -W "{names}" -- "$1"; compgen -f -- "$1"; }}'
    return shtab.complete(root, shell, preamble=own if shell == "bash" else "")


def _complete(action: Any) -> None:
    """Adds what the values of an option can be."""
    import shtab

    from condseg.cli.reference import CLASSES
    from condseg.zoo.registry import MODELS

    kind = getattr(action, "_typehint", None)
    if action.dest == "config":
        names = " ".join(_configs())
        action.complete = {
            "bash": "_condseg_config_file",
            "zsh": f"{{compadd -- {names}; _files}}",
        }
    elif action.dest in FILES:
        action.complete = shtab.FILE
    elif action.dest == "model" and action.option_strings and not hasattr(action, "basename"):
        action.choices = list(MODELS)
    elif kind is bool:
        action.choices = ["true", "false"]
    elif literals := list(_literals(kind)):
        action.choices = literals
    elif action.dest in CLASSES:
        action.choices = CLASSES[action.dest]


def _literals(kind: Any) -> Iterator[str]:
    if get_origin(kind) is Literal:
        yield from map(str, get_args(kind))
    else:
        for part in get_args(kind):
            yield from _literals(part)


def _configs() -> list[str]:
    from condseg.cli.config_files import CONFIGS

    return sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem != "default")
