"""Replaces the convolutions of any network by dynamic ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from condseg.layers.plain import STATIC, ConvFactory, geometry, is_static, place_like
from condseg.layers.slot import SPREAD, ConvSlot

Where = str | Sequence[str] | Callable[[str, nn.Module], bool]

SHORTCUTS = {"downsample", "shortcut", "skip", "skip_conv", "conv_skip"}
POOLED_PARTS = {"se", "attn", "attention", "global_pool"}
POOLED_CLASSES = re.compile(r"Squeeze|SEModule|SEBlock|Attention|Attn")
BLOCK = re.compile(r"^(?:[^.]*[^.\d][^.]*\.)*?(?:\d+\.)+")


@dataclass(frozen=True, slots=True)
class Conversion:
    """What :func:`to_dynamic` or :func:`to_static` changed.

    Attributes:
        converted: names of the replaced convolutions.
        kept: names of the others, each with the reason.
        parameters: number of the network's parameters before and after.
        kind: of the new convolutions, ``"dynamic"`` or ``"static"``.
        change: by name, how much a kernel varied over the samples before it was fixed:
            mean |K_i - M|^2 / mean |K_i|^2 with the mean M, from 0 (fixing it loses nothing) to 1;
            or the same of the bias, if larger.
    """

    converted: tuple[str, ...]
    kept: dict[str, str]
    parameters: tuple[int, int]
    kind: str = "dynamic"
    change: dict[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.converted)

    def __str__(self) -> str:
        before, after = self.parameters
        text = f"{len(self)} convolutions are {self.kind} now, {len(self.kept)} kept; "
        text += f"parameters {before:,} -> {after:,}"
        for reason in sorted(set(self.kept.values())):
            names = [name for name, why in self.kept.items() if why == reason]
            text += f"\n  kept ({reason}): {', '.join(names)}"
        return text


def to_dynamic(
    network: nn.Module,
    factory: ConvFactory,
    where: Where = "paper",
    *,
    copy: bool = True,
    spread: float = SPREAD,
) -> Conversion:
    """Replace convolutions of the network, in place, by dynamic layers that compute the same.

    Subclasses of nn.Conv2d that compute something else are kept, except timm's ``Conv2dSame``,
    whose padding is supported.

    Args:
        network: any module; tested with torchvision's and timm's.
        factory: builds a layer from nn.Conv2d's arguments, for example
            ``functools.partial(ODConv2d, num_experts=4)``. If it has a function ``connect``, that
            is called once with all new layers by name, for layers that share parameters.
        where: names of modules, all of whose convolutions are converted; or a predicate of a
            convolution's name and the convolution; or ``"paper"``, the layer's rule. That is all
            convolutions but the stem (those before the first block), attentions on pooled maps
            (squeeze and excitation) and, except for DyConv, shortcuts; for CondConv those of the
            last blocks.
        copy: start from the static weights (``copy_static_``), or as the layer initialises.
        spread: distance of the experts at the start, see :meth:`ConvSlot.copy_static_`.

    Returns:
        The names of converted and kept convolutions.

    Raises:
        ValueError: nothing is there to convert, or a name in where is not one of the network's.
    """
    before = count_parameters(network)
    convs = {n: conv for n, conv in _places(network).items() if not isinstance(conv, ConvSlot)}
    if not convs or "" in convs:
        raise ValueError(f"network={type(network).__name__} must hold convolutions inside of it")
    kept = {name: why for name, conv in convs.items() if (why := _unfit(conv, _dims(factory)))}
    fitting = {name: conv for name, conv in convs.items() if name not in kept}
    if where == "paper" and fitting:
        rule = paper_rule(factory, next(iter(fitting.values())))
        kept |= paper_exceptions(network, list(fitting), rule.paper_blocks, rule.paper_shortcuts)
    elif where != "paper":
        kept |= not_selected(network, where, fitting, "paper")
    converted = tuple(name for name in fitting if name not in kept)
    if not converted:
        raise ValueError(f"where={where!r} selects none of the {len(convs)} convolutions")
    built: dict[nn.Module, nn.Module] = {}
    for name in converted:
        if (conv := convs[name]) not in built:
            built[conv] = _build(factory, conv, copy, spread)
        network.set_submodule(name, built[conv])
    connect = getattr(getattr(factory, "func", factory), "connect", None)
    if connect is not None:
        connect({name: built[convs[name]] for name in converted})
    return Conversion(converted, kept, (before, count_parameters(network)))


def not_selected(
    network: nn.Module, where: Where, modules: Mapping[str, nn.Module], word: str
) -> dict[str, str]:
    """Names of the modules that where does not select, each with the reason."""
    if callable(where):
        return {name: "not selected" for name, module in modules.items() if not where(name, module)}
    prefixes = (where,) if isinstance(where, str) else tuple(where)
    names = {name for name, _ in network.named_modules(remove_duplicate=False)}
    for prefix in prefixes:
        if prefix not in names:
            raise ValueError(f"where={prefix!r} must be {word!r} or a module of the network")
    chosen = tuple(f"{p}." for p in prefixes)
    return {name: "not selected" for name in modules if not f"{name}.".startswith(chosen)}


def paper_rule(factory: ConvFactory, conv: nn.Module) -> type[ConvSlot]:
    """The class that the factory builds, which has its paper's rule."""
    layer = factory(**geometry(conv))
    return type(layer) if isinstance(layer, ConvSlot) else ConvSlot


def paper_exceptions(
    network: nn.Module,
    names: Sequence[str],
    last_blocks: int | None = None,
    shortcuts: bool = False,
) -> dict[str, str]:
    """Of these convolutions, the names of those that the papers leave static, with the reasons.

    ``last_blocks`` is the number of the last blocks, if only these are dynamic.
    """
    kept: dict[str, str] = {}
    places = list(_places(network))
    for name in places:
        parts = name.split(".")
        owners = [
            type(network.get_submodule(".".join(parts[:i]))).__name__ for i in range(len(parts))
        ]
        if SHORTCUTS.intersection(parts):
            if not shortcuts:
                kept[name] = "shortcut"
        elif POOLED_PARTS.intersection(parts[:-1]) or any(map(POOLED_CLASSES.search, owners)):
            kept[name] = "attention on a pooled map"
    main = [name for name in places if name not in kept]
    blocks = _blocks(main)
    first = main.index(blocks[0][0]) if blocks else 1
    kept |= dict.fromkeys(main[:first], "stem")
    if last_blocks is not None and blocks:
        last = {name for block in blocks[-last_blocks:] for name in block}
        kept |= {n: f"not in the last {last_blocks} blocks" for n in main[first:] if n not in last}
    return {name: kept[name] for name in names if name in kept}


def _places(network: nn.Module) -> dict[str, nn.Module]:
    """Convolutions, static and dynamic, in the order of definition, without their parts."""
    slots = [m for m in network.modules() if isinstance(m, ConvSlot)]
    inside = {part for slot in slots for part in slot.modules() if part is not slot}
    kinds = (*STATIC.values(), ConvSlot)
    modules = network.named_modules(remove_duplicate=False)
    return {name: m for name, m in modules if isinstance(m, kinds) and m not in inside}


def _blocks(names: Sequence[str]) -> list[list[str]]:
    """Groups of two or more convolutions under one numbered module, such as ``layer1.0``."""
    groups: dict[str, list[str]] = {}
    for name in names:
        if match := BLOCK.match(name):
            groups.setdefault(match.group(), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _dims(factory: ConvFactory) -> int:
    """Dimensions of the layers of a class, or of a partial of one; 2 if unknown."""
    dims: int = getattr(getattr(factory, "func", factory), "dims", 2)
    return dims


def _unfit(conv: nn.Module, dims: int) -> str | None:
    """Why a convolution cannot be replaced by a layer of these dimensions."""
    if not is_static(conv):
        return f"a {type(conv).__name__} computes something else"
    return None if isinstance(conv, STATIC[dims]) else f"it is not {dims}-D"


def _build(factory: ConvFactory, conv: nn.Module, copy: bool, spread: float) -> nn.Module:
    layer = factory(**geometry(conv))
    if copy and isinstance(layer, ConvSlot):
        layer.copy_static_(conv, spread)
    elif copy:
        layer.load_state_dict(conv.state_dict())
    return place_like(layer, conv)


def count_parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
