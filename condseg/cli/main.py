"""The command ``condseg``: one name for all commands."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from condseg import __version__
from condseg.cli.help import TRAIN, asks_for_help
from condseg.cli.messages import as_typed, did_you_mean

COMMANDS = {
    "train": "train a model",
    "eval": "box and mask AP of a model",
    "predict": "draw and write the instances found in images",
    "export": "write a model for other engines: ONNX, OpenVINO",
    "convert": "convert another project's checkpoint",
    "models": "list the published models",
    "download": "download COCO 2017",
    "completion": "completion of commands and options for your shell",
}
HELP = f"""condseg {__version__}: instance segmentation with dynamic convolutions

usage: condseg COMMAND [options]      condseg COMMAND --help      condseg --version

{"".join(f"  {name:<12}{text}{chr(10)}" for name, text in COMMANDS.items())}
  condseg train --data my/dataset
  condseg eval
  condseg predict street.jpg
"""


def main(args: Sequence[str] | None = None) -> int | None:
    """Runs the command that the first argument names.

    Args:
        args: the arguments; None for those of the process.

    Returns:
        The exit code, or None for 0.

    Raises:
        SystemExit: code 2 for an unknown command or an error that the user can correct.
    """
    args = sys.argv[1:] if args is None else list(args)
    if not args or args[0] in ("-h", "--help"):
        print(HELP, end="")
        return None
    if args[0] == "--version":
        print(f"condseg {__version__}")
        return None
    if args[0] not in COMMANDS:
        allowed = ", ".join(COMMANDS)
        sys.stderr.write(
            f"error: unknown command {args[0]}{did_you_mean(args[0], COMMANDS) or ';'} "
            f"There are {allowed}\n"
        )
        return 2
    if args[0] == "train" and asks_for_help(args[1:]):  # which needs no torch
        print(as_typed(TRAIN), end="")
        return None
    result = importlib.import_module(f"condseg.cli.{args[0]}").main(args[1:])
    return result if isinstance(result, int) else None
