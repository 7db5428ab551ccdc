"""Parts of several layers: pooling, norms, temperature, initialisation of experts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Norm = Literal["batch", "layer", "none"]

MAX_COUNT = 100
"""Of repeated parts: convolutions of a tower, layers, experts."""
MAX_SIZE = 255
"""Of a filter or a dilation, in pixels of a map."""


class Annealed(nn.Module):
    """A layer whose attention has a temperature: a buffer, saved with the model.

    Published checkpoints have no such entry; they load strictly, and the temperature is kept.
    """

    temperature: Tensor

    def _add_temperature(self, value: float) -> None:
        positive(temperature=value)
        self.register_buffer("temperature", torch.tensor(float(value)))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        state_dict.setdefault(prefix + "temperature", self.temperature)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def set_temperature(module: nn.Module, value: int | float) -> int:
    """Set the temperature of every layer inside that has one; return the number of layers."""
    positive(temperature=value)
    layers = [m for m in module.modules() if isinstance(m, Annealed)]
    for layer in layers:
        layer.temperature.fill_(value)
    return len(layers)


def lower_temperature(module: nn.Module, by: int | float = 3) -> int:
    """Lower the temperature of every layer inside, to at least 1; return the number of layers.

    Called after each epoch, it is the schedule of DyConv's public implementation: 34, 31, ..., 4,
    1. For the paper's schedule, linear from 30 to 1 per step, use :func:`set_temperature`.
    """
    positive(by=by)
    layers = [m for m in module.modules() if isinstance(m, Annealed)]
    for layer in layers:
        layer.temperature.sub_(by).clamp_(min=1)
    return len(layers)


class Linear1x1(nn.Conv2d):
    """A linear layer with the parameters of a 1x1 convolution, as in official checkpoints.

    Shape:
        (B, C) -> (B, O).
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 1, bias=bias)

    def forward(self, input: Float[Tensor, "b c"]) -> Float[Tensor, "b o"]:
        return F.linear(input, self.weight.flatten(1), self.bias)


class _OneValue:
    """Batch norm that in training uses its running statistics for a single value per channel.

    PyTorch raises an error there, as one value has no variance: the published ODConv cannot train
    at batch 1. The running statistics are not changed.
    """

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.numel() // max(input.shape[1], 1) < 2:  # type: ignore[attr-defined]
            mean, var = self.running_mean, self.running_var  # type: ignore[attr-defined]
            weight, bias = self.weight, self.bias  # type: ignore[attr-defined]
            return F.batch_norm(input, mean, var, weight, bias, eps=self.eps)  # type: ignore[attr-defined]
        return super().forward(input)  # type: ignore[misc, no-any-return]


class BatchNorm1d(_OneValue, nn.BatchNorm1d):
    __doc__ = _OneValue.__doc__


class BatchNorm2d(_OneValue, nn.BatchNorm2d):
    __doc__ = _OneValue.__doc__


def pooled_norm(norm: Norm, channels: int) -> nn.Module:
    """Norm of a pooled vector (B, C): batch as published; layer or none for very small batches."""
    norms: dict[str, Callable[[int], nn.Module]] = {
        "batch": BatchNorm1d,
        "layer": nn.LayerNorm,
        "none": nn.Identity,
    }
    if norm not in norms:
        raise ValueError(f"norm={norm!r} must be 'batch', 'layer' or 'none'")
    return norms[norm](channels)


def map_norm(norm: Norm, channels: int) -> nn.Module:
    """Norm of a map (B, C, H, W); layer is a group norm with one group."""
    if norm == "layer":
        return nn.GroupNorm(1, channels)
    return BatchNorm2d(channels) if norm == "batch" else pooled_norm(norm, channels)


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """A context without autocast."""
    kind = x.device.type
    return nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False)


def pool(x: Float[Tensor, "b c *s"], like: Tensor) -> Float[Tensor, "b c"]:
    """Global average in the parameters' precision; a vector is returned as it is."""
    if x.dim() == 2:
        return x.to(like.dtype)
    # The gradient of a mean is divided per pixel, in full precision; that of a sum is not.
    wide = torch.promote_types(like.dtype, torch.float32)
    total = x.sum(tuple(range(2, x.dim())), dtype=wide)
    return (total / math.prod(x.shape[2:])).to(like.dtype)


def positive(**values: int | float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value} must be positive")


def check_count(smallest: int = 1, **values: int) -> None:
    """Raises ValueError unless each number of repeated parts is allowed.

    A larger one is a mistake, and takes minutes and all memory to build.
    """
    for name, value in values.items():
        if not smallest <= value <= MAX_COUNT:
            raise ValueError(f"{name} is {value}; {smallest} to {MAX_COUNT} is allowed")


def init_like_conv_(weight: Tensor, bias: Tensor | None) -> None:
    """Initialise every expert as nn.Conv2d initialises its kernel and its bias."""
    for kernel in weight:
        nn.init.kaiming_uniform_(kernel, a=math.sqrt(5))
    if bias is not None:
        bound = 1 / math.sqrt(math.prod(weight.shape[2:]))
        nn.init.uniform_(bias, -bound, bound)


def check_sizes(name: str, values: Sequence[int]) -> tuple[int, ...]:
    """Sizes or dilations of parallel filters in pixels of a map, one or several."""
    if not 1 <= len(values) <= MAX_COUNT or not all(1 <= v <= MAX_SIZE for v in values):
        raise ValueError(f"{name}={tuple(values)} must be integers >= 1 and <= {MAX_SIZE}")
    return tuple(values)


def resize_like(x: Float[Tensor, "b c h w"], like: Tensor) -> Tensor:
    """Resize a map bilinearly to another's height and width, if they differ."""
    size = like.shape[-2:]
    return x if x.shape[-2:] == size else F.interpolate(x, size, mode="bilinear")
