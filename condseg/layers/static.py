"""Turns dynamic convolutions into plain ones, where the kernel is fixed or is to be."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from condseg.layers.convert import Conversion, Where, count_parameters, not_asked_for
from condseg.layers.slot import ConvSlot

GUIDED = "its kernel comes from a second input"


@torch.no_grad()
def to_static(
    network: nn.Module,
    batches: Iterable[Any] | None = None,
    where: Where = "all",
    *,
    max_change: float = 1.0,
) -> Conversion:
    """Replace dynamic convolutions of the network, in place, by plain ones.

    Without batches those become static whose kernel is the same for every input (heads that are
    zero or constant, experts that are equal): the network computes what it did. With batches the
    kernel is fixed at its mean over their samples, which for mixtures of experts is the kernel of
    the mean attention; over a single picture the network computes for it what it did.
    (``layer.to_static(kernel, bias)`` fixes one layer at a kernel of your own.)

    Args:
        network: any module.
        batches: inputs of the network, a tensor or a tuple of arguments each.
        where: ``"all"``, names of modules, or a predicate, as in :func:`to_dynamic`.
        max_change: with batches, layers whose kernel changes more (``Conversion.change``) are left.

    Returns:
        What was changed, and by how much the kernels had changed.

    Raises:
        ValueError: when the network holds no dynamic convolution inside of it, or a name in where
            is not the network's.
    """
    before = count_parameters(network)
    layers = {
        name: module
        for name, module in network.named_modules(remove_duplicate=False)
        if isinstance(module, ConvSlot)
    }
    if not layers or "" in layers:
        raise ValueError(f"network={type(network).__name__} must hold dynamic layers inside of it")
    kept = {} if where == "all" else not_asked_for(network, where, layers, "all")
    for name, layer in layers.items():
        if name not in kept and (why := layer.why_not_static()) is not None:
            kept[name] = why
    wanted = {name: layer for name, layer in layers.items() if name not in kept}
    if batches is None:
        seen = {id(layer): _probe(layer) for layer in wanted.values()}
        limit, reason = 1e-12, "its kernel or its bias depends on the input"
    else:
        seen = _watch(network, wanted.values(), batches)
        limit, reason = max_change, f"its kernel changes by more than {max_change}"
    built: dict[int, nn.Module] = {}
    change = {}
    for name, layer in wanted.items():
        kernels = seen[id(layer)]
        why = kernels.unknown
        if why is None:
            change[name] = kernels.change
            why = None if change[name] <= limit else reason
        if why is not None:
            kept[name] = why
        elif id(layer) not in built:
            built[id(layer)] = layer.to_static(*kernels.mean)
    converted = tuple(name for name in wanted if name not in kept)
    for name in converted:
        network.set_submodule(name, built[id(layers[name])])
    return Conversion(converted, kept, (before, count_parameters(network)), "static", change)


class _Kernels:
    """The kernels that a layer made, and their mean; ``unknown`` says why there is none."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: list[Any] = [0, 0]
        self.squares = [0.0, 0.0]
        self.unknown: str | None = "the batches do not reach it"

    def add(self, layer: ConvSlot, x: Tensor) -> None:
        """Take up the kernel of each sample; one by one, for all together they may be large."""
        for i in range(len(x)):
            for n, part in enumerate(layer.kernel_and_bias(x[i : i + 1])):
                if part is not None:
                    self.sums[n] += part[0].double()
                    self.squares[n] += part.double().square().sum().item()
            self.count, self.unknown = self.count + 1, None

    @property
    def mean(self) -> tuple[Tensor, Tensor | None]:
        kernel, bias = (total / self.count for total in self.sums)
        return kernel, bias if torch.is_tensor(bias) else None

    @property
    def change(self) -> float:
        """Of the kernel or of the bias, whichever changes more."""
        fixed = [0.0 if m is None else m.square().sum().item() * self.count for m in self.mean]
        pairs = zip(fixed, self.squares, strict=True)
        return max([0.0, *(1 - part / whole for part, whole in pairs if whole)])


def _probe(layer: ConvSlot) -> _Kernels:
    """The layer's kernels for maps of all sizes of mean, in double precision."""
    layer = copy.deepcopy(layer).double().eval()
    random = torch.Generator().manual_seed(0)
    vectors = torch.randn(16, layer.in_channels, generator=random, dtype=torch.float64)
    vectors *= torch.logspace(-2, 4, 16, dtype=torch.float64)[:, None]
    kernels = _Kernels()
    if getattr(layer, "guide_channels", layer.in_channels) != layer.in_channels:
        kernels.unknown = GUIDED
    else:
        kernels.add(layer, vectors.to(next(layer.parameters()).device))
    return kernels


def _watch(
    network: nn.Module, layers: Iterable[ConvSlot], batches: Iterable[Any]
) -> dict[int, _Kernels]:
    """The kernels of the layers while the network, in eval mode, is given the batches."""
    seen = {id(layer): _Kernels() for layer in layers}

    def watch(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert isinstance(layer, ConvSlot)
        if len(args) != 1 or kwargs:
            seen[id(layer)].unknown = GUIDED
        elif seen[id(layer)].unknown != GUIDED:
            seen[id(layer)].add(layer, args[0])

    modules = list(network.modules())
    modes = [module.training for module in modules]
    hooks = [
        module.register_forward_pre_hook(watch, with_kwargs=True)
        for module in modules
        if id(module) in seen
    ]
    network.eval()
    try:
        for batch in batches:
            network(*batch) if isinstance(batch, tuple) else network(batch)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
    return seen
