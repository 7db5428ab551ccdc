"""The stages of a network, and its conversion to dynamic convolutions stage by stage."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal

from torch import nn

from condseg.layers import ConvFactory, to_dynamic
from condseg.layers.convert import paper_exceptions, paper_rule
from condseg.layers.plain import is_static

log = logging.getLogger(__name__)

Where = Literal["paper"] | list[int] | list[str]


def make_dynamic_(
    network: nn.Module, conv: ConvFactory, where: Where, ends: dict[int, str]
) -> tuple[str, ...]:
    """Replace convolutions by dynamic ones, in place; returns the names of these.

    ``where`` is as in :class:`Backbone`, ``ends`` maps a stage to its last module.
    """
    numbers = [number for number in where if isinstance(number, int)]
    if numbers:
        conversion = to_dynamic(network, conv, _in_stages(network, numbers, ends, conv))
    else:
        names = [str(name) for name in where] if isinstance(where, list) else where
        conversion = to_dynamic(network, conv, names)
    log.info("%s", conversion)
    # A factory may build static convolutions too: nn.Conv2d leaves everything as it was.
    return tuple(n for n in conversion.converted if type(network.get_submodule(n)) is not nn.Conv2d)


def _in_stages(
    network: nn.Module, numbers: list[int], ends: dict[int, str], conv: ConvFactory
) -> Callable[[str, nn.Module], bool]:
    """Whether a convolution is one that the layer's paper replaces, in some stages only."""
    if not set(numbers) <= set(ends):
        raise ValueError(f"where={numbers}: the network has the stages {sorted(ends)}")
    stages = module_stages(network, ends)
    convs = {name: m for name, m in network.named_modules() if isinstance(m, nn.Conv2d)}
    static = [m for m in convs.values() if is_static(m)]
    shortcuts = bool(static) and paper_rule(conv, static[0]).paper_shortcuts
    kept = paper_exceptions(network, list(convs), shortcuts=shortcuts)
    return lambda name, _: name not in kept and stages[name] in numbers


def module_stages(network: nn.Module, ends: dict[int, str]) -> dict[str, int]:
    """The stage of each module, which are defined in the order of the forward pass."""
    names = [name for name, _ in network.named_modules()]
    last = {}
    for stage, end in sorted(ends.items()):
        name = end_of_stage(network, stage, end)
        last[stage] = max(i for i, n in enumerate(names) if n == name or n.startswith(f"{name}."))
    final = max(ends)
    return {
        name: next((s for s, end in last.items() if name and i <= end), final)
        for i, name in enumerate(names)
    }


def end_of_stage(network: nn.Module, stage: int, end: str) -> str:
    """The name of the last module of a stage; some of timm's networks have _ instead of dots."""
    names = {name for name, _ in network.named_modules()}
    for name in (end, end.replace(".", "_")):
        if name in names:
            return name
    raise ValueError(
        f"{type(network).__name__} has no module {end}, the end of its stage {stage}: "
        "freeze_stages must be 0, and where must not be numbers"
    )
