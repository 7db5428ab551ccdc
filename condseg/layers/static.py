"""Replaces dynamic convolutions by static ones with a fixed kernel."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from condseg.layers.convert import Conversion, Where, count_parameters, not_selected
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
    """Replace dynamic convolutions of the network, in place, by static ones.

    Without batches, layers whose kernel is the same for every input are replaced (heads that are
    zero, experts that are equal), and the network computes the same. With batches, kernels are
    fixed at their mean over the samples, for mixtures of experts the kernel of the mean attention;
    for a batch of one image the network computes the same for that image.
    (``layer.to_static(kernel, bias)`` fixes one layer at a kernel of your own.)

    Args:
        network: any module.
        batches: inputs of the network, a tensor or a tuple of arguments each.
        where: ``"all"``, names of modules, or a predicate, as in :func:`to_dynamic`.
        max_change: with batches, layers whose kernel varies more (``Conversion.change``) are kept.

    Returns:
        The names of converted and kept layers, and how much their kernels varied.

    Raises:
        ValueError: the network holds no dynamic convolution inside of it, or a name in where is
            not one of the network's.
    """
    before = count_parameters(network)
    modules = network.named_modules(remove_duplicate=False)
    layers = {name: module for name, module in modules if isinstance(module, ConvSlot)}
    if not layers or "" in layers:
        raise ValueError(f"network={type(network).__name__} must hold dynamic layers inside of it")
    kept = {} if where == "all" else not_selected(network, where, layers, "all")
    for name, layer in layers.items():
        if name not in kept and (why := layer.why_not_static()) is not None:
            kept[name] = why
    candidates = {name: layer for name, layer in layers.items() if name not in kept}
    if batches is None:
        observed = {layer: _probe(layer) for layer in candidates.values()}
        limit, reason = 1e-12, "its kernel or its bias depends on the input"
    else:
        observed = _observe(network, candidates.values(), batches)
        limit, reason = max_change, f"its kernel varies by more than {max_change}"
    built: dict[nn.Module, nn.Module] = {}
    change = {}
    for name, layer in candidates.items():
        kernels = observed[layer]
        if kernels.unknown is not None:
            kept[name] = kernels.unknown
            continue
        change[name] = kernels.change
        if change[name] > limit:
            kept[name] = reason
        elif layer not in built:
            built[layer] = layer.to_static(*kernels.mean)
    converted = tuple(name for name in candidates if name not in kept)
    for name in converted:
        network.set_submodule(name, built[layers[name]])
    return Conversion(converted, kept, (before, count_parameters(network)), "static", change)


class _Kernels:
    """Mean and variation of a layer's kernels; ``unknown`` is why there are none."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: list[Any] = [0, 0]  # of kernels (O, C / groups, *k) and biases (O,)
        self.squares = [0.0, 0.0]  # sums of all their squared elements
        self.unknown: str | None = "the batches do not reach it"

    def add(self, layer: ConvSlot, x: Tensor) -> None:
        """Add the kernel of each sample, one by one: together they may be large."""
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
        """mean |K_i - M|^2 / mean |K_i|^2 of the kernel or of the bias, whichever is larger."""
        fixed = [0.0 if m is None else m.square().sum().item() * self.count for m in self.mean]
        pairs = zip(fixed, self.squares, strict=True)  # sum |M|^2 and sum |K_i|^2
        return max([0.0, *(1 - part / whole for part, whole in pairs if whole)])


def _probe(layer: ConvSlot) -> _Kernels:
    """The layer's kernels for random means of all magnitudes, in double precision."""
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


def _observe(
    network: nn.Module, layers: Iterable[ConvSlot], batches: Iterable[Any]
) -> dict[ConvSlot, _Kernels]:
    """The kernels of the layers while the network runs on the batches in eval mode."""
    observed = {layer: _Kernels() for layer in layers}

    def observe(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if len(args) != 1 or kwargs:
            observed[layer].unknown = GUIDED
        elif observed[layer].unknown != GUIDED:
            observed[layer].add(layer, args[0])

    modes = {module: module.training for module in network.modules()}
    hooks = [layer.register_forward_pre_hook(observe, with_kwargs=True) for layer in observed]
    network.eval()
    try:
        for batch in batches:
            network(*batch) if isinstance(batch, tuple) else network(batch)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    return observed
