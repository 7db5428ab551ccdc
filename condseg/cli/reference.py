"""Every option of a training with its type, default and help: docs/options.md and --help-all."""

from __future__ import annotations

import argparse
import inspect
import itertools
import re
import types
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

import yaml  # type: ignore[import-untyped]
from jsonargparse import ArgumentParser, Namespace

from condseg.layers import ConvFactory

INTRODUCTION = """\
# Options of `condseg train`

Options of the command line (`--trainer.max_steps 300`), keys of YAML files \
(`trainer: {max_steps: 300}`) and `condseg.train(options={"trainer.max_steps": 300})` are one. \
Defaults are those of `default.yaml`; `null` is no value. `--print_config` prints the values of a \
training. A `+` after an option that takes a list, as in `--trainer.callbacks+`, adds to the list.

This page is the output of `condseg train --help-all`.
"""

TORCH = "https://docs.pytorch.org/docs/stable/optim.html"
LIGHTNING = "https://lightning.ai/docs/pytorch/stable/api_references.html"
CLASSES = {
    "model.network.backbone.conv": [
        f"condseg.layers.{name}Conv2d" for name in ("OD", "Dy", "DyNet", "Cond", "Deform")
    ],
    "model.network.pyramid": [f"condseg.models.{name}" for name in ("FPN", "BiFPN", "PAFPN")],
    "model.network.head": ["condseg.models.FCOSHead", "condseg.models.RTMDetHead"],
    "model.network.mask_branch": ["condseg.models.MaskBranch", "condseg.models.ConcatMaskBranch"],
    "model.network.mask_head": ["condseg.models.DynamicMaskHead", "condseg.models.RTMDetMaskHead"],
    "model.network.mask_filter": [
        "condseg.layers.DynamicDilatedPyramid2d",
        "condseg.layers.DynamicMultiScaleFilter2d",
        "condseg.layers.DynamicLocalFilter2d",
    ],
    "model.dense_loss": ["condseg.models.FCOSLoss", "condseg.models.SoftLabelLoss"],
    "model.schedule": [
        "condseg.training.schedules.WarmupMultiStep",
        "condseg.training.schedules.WarmupCosine",
    ],
    "trainer.callbacks": ["condseg.training.callbacks.ExponentialAveraging"],
}
"""The classes of condseg that an option takes."""

OTHERS = {
    "model.optimizer": ("torch.optim", TORCH),
    "model.schedule": ("torch.optim.lr_scheduler", TORCH),
    "trainer.callbacks": ("lightning.pytorch.callbacks", LIGHTNING),
    "trainer.logger": ("lightning.pytorch.loggers", LIGHTNING),
    "trainer.profiler": ("lightning.pytorch.profilers", LIGHTNING),
    "trainer.strategy": ("lightning.pytorch.strategies", LIGHTNING),
}
"""Another package whose classes an option takes."""


class HelpAll(argparse.Action):
    """``--help-all`` prints the page, and ends."""

    def __init__(self, option_strings: list[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, **options)

    def __call__(self, parser: Any, *_: Any) -> NoReturn:
        print(page(parser), end="")
        raise SystemExit(0)


def page(parser: ArgumentParser) -> str:
    """The options of a parser in Markdown, by their groups, and the classes that they take."""
    groups: dict[str, list[str]] = {}
    titles: dict[str, str] = {}
    kinds: dict[str, Any] = {}
    for group in parser._action_groups:
        for action in _options(group._group_actions):
            prefix = action.dest.rpartition(".")[0]
            groups.setdefault(prefix, []).append(_row(action, f"--{action.dest}"))
            titles.setdefault(prefix, (group.title or "") if prefix else "Files and runs")
            kinds[action.dest] = getattr(action, "_typehint", None)
    table = "| option | type | default | |\n|---|---|---|---|\n"
    parts = [INTRODUCTION]
    for prefix, rows in groups.items():
        name = f"`{prefix}`: {_plain(titles[prefix])}" if prefix else titles[prefix]
        parts.append(f"## {name}\n\n{table}" + "".join(rows))
    paths = {path: kinds[option] for option, found in CLASSES.items() for path in found}
    parts.append("## Classes\n\nWith the arguments of `init_args`.\n")
    parts += itertools.starmap(_class_section, paths.items())
    return "\n".join(parts)


def _options(actions: Iterable[argparse.Action]) -> Iterator[argparse.Action]:
    for action in actions:
        own = hasattr(action, "_typehint") or isinstance(action, argparse._StoreAction)
        is_help = action.dest.endswith(".help")
        if (own and not is_help) or action.metavar == "PATH":
            yield action


def _class_section(path: str, kind: Any) -> str:
    """A class and its arguments; ``kind`` is the type of the option that takes it."""
    module, _, name = path.rpartition(".")
    parser = ArgumentParser(exit_on_error=False)
    part = getattr(import_module(module), name)
    parser.add_class_arguments(part, skip=_not_options(kind))
    rows = [_row(action, action.dest) for action in _options(parser._actions)]
    table = "\n| argument | type | default | |\n|---|---|---|---|\n" + "".join(rows)
    summary = _plain((part.__doc__ or "").split("\n\n")[0])
    return f"### {path}\n\n{summary}\n{table if rows else ''}"


def _not_options(kind: Any) -> set[str | int]:
    """The arguments of a class that the network or the training sets: those of its factory."""
    for part in (kind, *get_args(kind)):
        if part is ConvFactory:
            return set(inspect.signature(ConvFactory.__call__).parameters)
        if get_origin(part) is Callable:
            return {len(get_args(part)[0])}
    return set()


def _row(action: argparse.Action, name: str) -> str:
    kind = _type(getattr(action, "_typehint", str))
    if name.removeprefix("--") in CLASSES.keys() | OTHERS.keys():
        kind = _class_links(name.removeprefix("--"))
    default = yaml.safe_dump(
        _plain_data(None if action.default is argparse.SUPPRESS else action.default),
        default_flow_style=True,
        width=10_000,
        sort_keys=False,
    )
    default = default.removesuffix("\n").removesuffix("\n...")
    cells = [f"`{name}`", kind, f"`{default}`", _sentence(action.help or "")]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def _class_links(option: str) -> str:
    links = [
        f"[{path.rpartition('.')[2]}](#{path.replace('.', '').lower()})"
        for path in CLASSES.get(option, ())
    ]
    if option in OTHERS:
        links.append("of [{}]({})".format(*OTHERS[option]))
    return f"class: {', '.join(links)}"


def _type(kind: Any) -> str:
    """``Union[bool, int]`` -> "bool or int"."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        # typing caches equal unions, so that their order depends on what was imported before.
        return " or ".join(sorted(set(map(_type, args)), key=lambda name: (name == "null", name)))
    if origin is Literal:
        return " or ".join(map(str, args))
    if origin is Callable:
        return f"class of {_type(args[-1])}"
    if origin in (list, tuple, dict, Iterable):
        return f"{origin.__name__.lower()} of {_type(args[-1] if origin is dict else args[0])}"
    return "null" if kind is type(None) else str(getattr(kind, "__name__", kind))


def _plain_data(value: Any) -> Any:
    if isinstance(value, Namespace):
        value = value.as_dict()
    if isinstance(value, dict):
        return {key: _plain_data(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_data(entry) for entry in value]
    return value if isinstance(value, str | int | float | None) else str(value)


def _sentence(text: str) -> str:
    """The first sentence of a help text."""
    first = re.split(r"(?<=[^.])\.\s+(?=[A-Z`:\"])", _plain(text))[0]
    return first if first.endswith("..") else first.removesuffix(".")


def _plain(text: str) -> str:
    """Text of a docstring, reStructuredText, in Markdown."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", " ".join(text.split()))
    return text.replace("``", "`")
