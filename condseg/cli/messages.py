"""Parsers of commands, and error messages with the nearest valid name for a misspelt one."""

from __future__ import annotations

import argparse
import difflib
import importlib
import inspect
import logging
import os
import re
import shlex
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

from condseg.export import EngineName
from condseg.zoo.allowed import forbidden

UNKNOWN_KEY = re.compile(
    r"Group '(\S+)' does not accept option '(\S+)'"
    r"|unrecognized arguments: --([^\s=]+)"
    r"|Key '(\S+)' is not expected"
)
UNKNOWN_ARGUMENT = re.compile(r"Option '(\S+)' is not accepted")
CLASS = re.compile(r"class_path[= ]'([\w.]+)'")
UNKNOWN_CLASS = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'")

SCRIPTS = {"predict": "demo", "download": "download_coco"}
"""Scripts in tools/ that are not named as their command."""


def command(name: str, *args: object) -> str:
    """A command as its user types it: ``condseg eval``, or ``python tools/eval.py`` by scripts.

    Args:
        name: of the command.
        args: its arguments, which are quoted for a shell.
    """
    script = ["python", f"tools/{SCRIPTS.get(name, name)}.py"]
    return shlex.join([*(["condseg", name] if _is_condseg() else script), *map(str, args)])


def as_typed(text: str) -> str:
    """A text with :func:`command` for each ``condseg NAME`` at the beginning of a line."""
    return re.sub(
        r"^( *(?:usage: )?)condseg (\w+)", lambda m: m[1] + command(m[2]), text, flags=re.M
    )


def _is_condseg() -> bool:
    path = Path(sys.argv[0])
    return path.stem == "condseg" or path.parts[-2:] == ("condseg", "__main__.py")


def command_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser without abbreviations that shows the description as it is.

    A line of it that begins with a command begins with what the user types.
    """
    return argparse.ArgumentParser(
        prog=f"condseg {sys.argv[1]}" if _is_condseg() else None,
        description=as_typed(description or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """The options that choose the model, its device and precision."""
    parser.add_argument(
        "--checkpoint", help="path, address or hf://user/repository; default: best of newest run"
    )
    parser.add_argument("--model", help="published model; rtmdet_ins_m if nothing is trained")
    parser.add_argument("--offline", action="store_true", help="download no model")
    add_allow_option(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--precision", default="32-true", help="or bf16-mixed, often faster")
    parser.add_argument(
        "--engine",
        choices=get_args(EngineName),
        help="of an exported --checkpoint (.onnx, .xml); default: by its ending",
    )


def add_allow_option(parser: argparse.ArgumentParser) -> None:
    """The option with the packages of :func:`condseg.zoo.allowed.allowing`."""
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="package whose classes the checkpoint may name, which runs its code; may be repeated",
    )


def one_line(message: str, keys: Iterable[str]) -> str:
    """Shortens jsonargparse's message to one line and adds the nearest valid name.

    Args:
        message: of jsonargparse, may have several lines.
        keys: full names of the parser's arguments.
    """
    line = " ".join(message.split())
    if match := UNKNOWN_KEY.search(line):
        return unknown_key(".".join(part for part in match.groups() if part), keys)
    if line.startswith('Parser key "'):
        line = line.removeprefix('Parser key "').replace('":', ":", 1)
    key = line.partition(":")[0]
    if (match := UNKNOWN_ARGUMENT.search(line)) and (owner := CLASS.search(line)):
        module, _, name = owner[1].rpartition(".")
        part = getattr(importlib.import_module(module), name)
        names = inspect.signature(part).parameters
        return f"{key}: {owner[1]} has no argument {match[1]}{did_you_mean(match[1], names)}"
    if match := UNKNOWN_CLASS.search(line):
        return f"{key}: {match[0]}{did_you_mean(match[2], dir(importlib.import_module(match[1])))}"
    if text := forbidden(line):
        return f"{key}: {text}"
    return line


def unknown_key(key: str, keys: Iterable[str]) -> str:
    """The message for a key that no argument has."""
    return f"unknown key {key}{did_you_mean(key, keys)}"


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """``; did you mean X?`` with the most similar name, or nothing.

    Names with the same prefix come first, as a typo is rarely in two parts of a key.
    """
    prefix, _, last = name.rpartition(".")
    siblings = {n.rpartition(".")[2].lower(): n for n in names if n.rpartition(".")[0] == prefix}
    close = [siblings[n] for n in difflib.get_close_matches(last.lower(), siblings, 1)]
    close = close or difflib.get_close_matches(name, list(names), 1)
    return f"; did you mean {close[0]}?" if close else ""


def silence_irrelevant_warnings() -> None:
    """Hides Lightning's warnings, tips and lines that no user can act on."""
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    # The metrics are already computed over all ranks.
    warnings.filterwarnings("ignore", message=".*self.log\\('val")
    # The frozen stages of a backbone stay in evaluation mode.
    warnings.filterwarnings("ignore", message="Found .* in eval mode at the start of training")
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    for log in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(log).addFilter(_is_relevant)


def _is_relevant(record: logging.LogRecord) -> bool:
    # Lightning says that it stopped in the line of the progress bar.
    texts = ("Tip:", "TPU available", "Seed set", "`Trainer.fit` stopped")
    return not any(text in record.getMessage() for text in texts)
