"""Turns the convolutions of any network into dynamic ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from condseg.layers.slot import (
    SPREAD,
    STATIC,
    ConvFactory,
    ConvSlot,
    geometry,
    is_static,
    place_like,
)

Where = str | Sequence[str] | Callable[[str, nn.Module], bool]

SHORTCUTS = {"downsample", "shortcut", "skip", "skip_conv", "conv_skip"}
POOLED_PARTS = {"se", "attn", "attention", "global_pool"}
POOLED_CLASSES = re.compile(r"Squeeze|SEModule|SEBlock|Attention|Attn")
BLOCK = re.compile(r"^(?:[^.]*[^.\d][^.]*\.)*?(?:\d+\.)+")


@dataclass(frozen=True, slots=True)
class Conversion:
    """What :func:`to_dynamic` or :func:`to_static` changed.

    Attributes:
        converted: names of the convolutions that are dynamic, or static, now.
        kept: names of the others, each with the reason.
        parameters: number of the network's parameters before and after.
        made: what they were made, ``"dynamic"`` or ``"static"``.
        change: by name, how much of a kernel changed from sample to sample before it was fixed:
            mean |K_i - M|^2 / mean |K_i|^2 with M the mean, 0 (nothing is lost) to 1; or of the
            bias, if that is more.
    """

    converted: tuple[str, ...]
    kept: dict[str, str]
    parameters: tuple[int, int]
    made: str = "dynamic"
    change: dict[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.converted)

    def __str__(self) -> str:
        before, after = self.parameters
        reasons = sorted(set(self.kept.values()))
        lines = [
            f"{len(self)} convolutions made {self.made}, {len(self.kept)} kept; "
            f"parameters {before:,} -> {after:,}"
        ]
        for reason in reasons:
            names = [name for name, why in self.kept.items() if why == reason]
            lines.append(f"  kept ({reason}): {', '.join(names)}")
        return "\n".join(lines)


def to_dynamic(
    network: nn.Module,
    factory: ConvFactory,
    where: Where = "paper",
    *,
    copy: bool = True,
    spread: float = SPREAD,
) -> Conversion:
    """Replace convolutions of the network, in place, by layers that compute the same at the start.

    Args:
        network: any module; torchvision's and timm's are known to work.
        factory: builds a layer from nn.Conv2d's arguments, for example
            ``functools.partial(ODConv2d, num_experts=4)``.
        where: ``"paper"``, the layer's own rule: all convolutions but the stem (what comes before
            the first block) and, except for DyConv, the shortcuts, or those of the last blocks
            (CondConv); or the names of modules, all of whose convolutions are converted; or a
            predicate of the convolution's name and the convolution.
        copy: start from the static weights (``copy_static_``); else as the layer initialises.
        spread: how far the experts start from each other, see :meth:`ConvSlot.copy_static_`.

    Returns:
        What was changed. Convolutions of attentions on pooled maps (squeeze and excitation) and of
        layers that are dynamic already are not touched by ``"paper"``; subclasses of nn.Conv2d that
        compute something else are never touched, except timm's ``Conv2dSame``, whose padding the
        new layer takes over.

    Raises:
        ValueError: when nothing is there to convert, or a name in where is not the network's.
    """
    before = count_parameters(network)
    convs = {n: conv for n, conv in _places(network).items() if not isinstance(conv, ConvSlot)}
    if not convs or "" in convs:
        raise ValueError(f"network={type(network).__name__} must hold convolutions inside of it")
    kept = {name: why for name, conv in convs.items() if (why := _unfit(conv, _dims(factory)))}
    wanted = {name: conv for name, conv in convs.items() if name not in kept}
    if where == "paper" and wanted:
        rule = paper_rule(factory, next(iter(wanted.values())))
        kept |= paper_exceptions(network, list(wanted), rule.paper_blocks, rule.paper_shortcuts)
    elif where != "paper":
        kept |= not_asked_for(network, where, wanted, "paper")
    converted = tuple(name for name in wanted if name not in kept)
    if not converted:
        raise ValueError(f"where={where!r} chooses none of the {len(convs)} convolutions")
    built: dict[int, nn.Module] = {}
    for name in converted:
        conv = convs[name]
        if id(conv) not in built:
            built[id(conv)] = _build(factory, conv, copy, spread)
        network.set_submodule(name, built[id(conv)])
    return Conversion(converted, kept, (before, count_parameters(network)))


def not_asked_for(
    network: nn.Module, where: Where, modules: Mapping[str, nn.Module], word: str
) -> dict[str, str]:
    """Names of the modules that where does not choose, each with the reason."""
    if callable(where):
        return {
            name: "not asked for" for name, module in modules.items() if not where(name, module)
        }
    prefixes = (where,) if isinstance(where, str) else tuple(where)
    names = {name for name, _ in network.named_modules(remove_duplicate=False)}
    for prefix in prefixes:
        if prefix not in names:
            raise ValueError(f"where={prefix!r} must be {word!r} or a module of the network")
    chosen = tuple(f"{p}." for p in prefixes)
    return {name: "not asked for" for name in modules if not f"{name}.".startswith(chosen)}


def paper_rule(factory: ConvFactory, conv: nn.Module) -> type[ConvSlot]:
    """The class of what is built in the place of a convolution: it has its paper's rule."""
    layer = factory(**geometry(conv))
    return type(layer) if isinstance(layer, ConvSlot) else ConvSlot


def paper_exceptions(
    network: nn.Module,
    names: Sequence[str],
    last_blocks: int | None = None,
    shortcuts: bool = False,
) -> dict[str, str]:
    """Names of the convolutions that the papers leave static, each with the reason.

    Args:
        network: holds them.
        names: the convolutions that are asked about.
        last_blocks: where given, only the network's last blocks are dynamic.
        shortcuts: whether they are dynamic, too.
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
    """Convolutions, static and dynamic, in the order of definition; not what is inside of them."""
    slots = [m for m in network.modules() if isinstance(m, ConvSlot)]
    inside = {id(part) for slot in slots for part in slot.modules() if part is not slot}
    return {
        name: module
        for name, module in network.named_modules(remove_duplicate=False)
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, ConvSlot))
        and id(module) not in inside
    }


def _blocks(names: Sequence[str]) -> list[list[str]]:
    """Groups of two or more convolutions under one numbered module, such as ``layer1.0``."""
    groups: dict[str, list[str]] = {}
    for name in names:
        match = BLOCK.match(name)
        if match:
            groups.setdefault(match.group(), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _dims(factory: ConvFactory) -> int:
    """Dimensions of what a class, or a partial of one, builds; two where that is not known."""
    dims: int = getattr(getattr(factory, "func", factory), "dims", 2)
    return dims


def _unfit(conv: nn.Module, dims: int) -> str | None:
    """Why a convolution cannot be replaced by a layer of so many dimensions."""
    if not is_static(conv):
        return f"a {type(conv).__name__} computes something else"
    return None if isinstance(conv, STATIC[dims]) else f"it is not {dims}-D"


def _build(factory: ConvFactory, conv: nn.Module, copy: bool, spread: float) -> nn.Module:
    assert is_static(conv)
    layer = factory(**geometry(conv))
    if copy:
        if isinstance(layer, ConvSlot):
            layer.copy_static_(conv, spread)
        else:
            layer.load_state_dict(conv.state_dict())
    return place_like(layer, conv)


def count_parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
