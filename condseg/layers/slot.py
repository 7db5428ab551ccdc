"""What the layers share: nn.Conv2d's place in a network, padding, the start from static weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Literal, Protocol, TypeGuard, TypeVar, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from condseg.layers.implementation import Implementation

Sizes = int | tuple[int, ...]
Norm = Literal["batch", "layer", "none"]
Slot = TypeVar("Slot", bound="ConvSlot")
Module = TypeVar("Module", bound=nn.Module)
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


@runtime_checkable
class ConvFactory(Protocol):
    """Anything that builds a layer from nn.Conv2d's arguments; nn.Conv2d itself fits."""

    def __call__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Any = "zeros",
    ) -> nn.Module: ...


class ConvSlot(nn.Module):
    """Base of the layers that stand where an ``nn.Conv2d`` stood.

    Args:
        in_channels, out_channels, kernel_size, stride, dilation, groups, bias: as in ``nn.Conv2d``.
        padding: pixels on both sides, ``"valid"``, ``"same"``, or ``"tf_same"`` (TensorFlow's
            SAME, which depends on the size of the input; ceil(size / stride) results).
        padding_mode: zeros, reflect, replicate or circular.

    Raises:
        ValueError: for an argument that ``nn.Conv2d`` would refuse.
    """

    dims: ClassVar[int] = 2
    implementation: Implementation = "fast"
    paper_blocks: ClassVar[int | None] = None
    """How many of the network's last blocks the paper makes dynamic; None for all of them."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes | str = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__()
        positive(in_channels=in_channels, out_channels=out_channels, groups=groups)
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels % groups:
                raise ValueError(f"{name}={channels} must be divisible by groups={groups}")
        if padding_mode not in PADDING_MODES:
            raise ValueError(f"padding_mode={padding_mode!r} must be one of {PADDING_MODES}")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = self._sizes("kernel_size", kernel_size, 1)
        self.stride = self._sizes("stride", stride, 1)
        self.dilation = self._sizes("dilation", dilation, 1)
        self.padding: tuple[int, ...] | str
        if isinstance(padding, str):
            if padding not in ("valid", "same", "tf_same"):
                raise ValueError(f"padding={padding!r} must be sizes, 'valid', 'same' or 'tf_same'")
            if padding == "same" and any(s != 1 for s in self.stride):
                raise ValueError(f"padding='same' needs stride 1, not {stride}; or 'tf_same'")
            self.padding = padding
        else:
            self.padding = self._sizes("padding", padding, 0)
        self.padding_mode = padding_mode
        self.has_bias = bias

    def _sizes(self, name: str, value: Sizes, least: int) -> tuple[int, ...]:
        sizes = (value,) * self.dims if isinstance(value, int) else tuple(value)
        if len(sizes) != self.dims or any(s < least for s in sizes):
            raise ValueError(f"{name}={value} must be {self.dims} whole numbers >= {least}")
        return sizes

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of one kernel, as ``nn.Conv2d.weight`` has it."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    @property
    def depthwise(self) -> bool:
        return self.in_channels == self.out_channels == self.groups

    def pad(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """Give the map and the symmetric zero padding that is left for the convolution to do."""
        if isinstance(self.padding, tuple):
            sides = [(p, p) for p in self.padding]
        else:
            sides = [self._string_padding(i, x.shape[2 + i]) for i in range(self.dims)]
        if self.padding_mode == "zeros" and all(before == after for before, after in sides):
            return x, tuple(before for before, _ in sides)
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        if any(side != (0, 0) for side in sides):
            x = F.pad(x, [p for side in reversed(sides) for p in side], mode=mode)
        return x, (0,) * self.dims

    def _string_padding(self, axis: int, size: int) -> tuple[int, int]:
        if self.padding == "valid":
            return 0, 0
        reach = self.dilation[axis] * (self.kernel_size[axis] - 1)
        if self.padding == "tf_same":
            stride = self.stride[axis]
            reach = max((math.ceil(size / stride) - 1) * stride + reach + 1 - size, 0)
        return reach // 2, reach - reach // 2

    def _apply(self: Slot, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Slot:
        """Show stacked kernels as one kernel: channels_last is for four dimensions, not five."""

        def on_kernel(x: Tensor) -> Tensor:
            if x.dim() != self.dims + 3:
                return fn(x)
            stacked: Tensor = fn(x.flatten(0, 1)).unflatten(0, x.shape[:2])
            return stacked

        super()._apply(on_kernel, recurse)  # type: ignore[no-untyped-call]
        return self

    def copy_static_(self, conv: nn.Module) -> None:
        """Compute from now on what the static convolution computes, to rounding."""
        raise NotImplementedError

    @classmethod
    def from_static(cls: type[Slot], conv: nn.Module, **knobs: Any) -> Slot:
        """Build the layer in the place of a static convolution; it computes what that one does.

        Args:
            conv: an ``nn.Conv1d/2d/3d`` of the layer's dimension, or timm's ``Conv2dSame``.
            knobs: the layer's own arguments.
        """
        layer = cls(**geometry(conv), **knobs)
        layer.copy_static_(conv)
        return place_like(layer, conv)

    def _static(self, conv: nn.Module) -> tuple[Tensor, Tensor | None]:
        """Kernel and bias of a convolution of the same shape."""
        if not is_static(conv):
            raise ValueError(f"conv={type(conv).__name__} must be a plain convolution")
        shape = tuple(conv.weight.shape)
        if shape != self.kernel_shape or (conv.bias is not None) != self.has_bias:
            raise ValueError(
                f"conv has a kernel {shape} {'without' if conv.bias is None else 'with'} bias; the "
                f"layer's is {self.kernel_shape} {'with' if self.has_bias else 'without'} bias"
            )
        return conv.weight.detach(), None if conv.bias is None else conv.bias.detach()

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        usual = {"stride": (1,), "padding": (0,), "dilation": (1,)}
        for name, (value,) in usual.items():
            if getattr(self, name) != (value,) * self.dims:
                text += f", {name}={getattr(self, name)}"
        text += f", groups={self.groups}" if self.groups != 1 else ""
        text += "" if self.has_bias else ", bias=False"
        return text + (
            f", padding_mode={self.padding_mode}" if self.padding_mode != "zeros" else ""
        )


def is_static(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether the module is a plain convolution: one that the layers can stand in for."""
    return type(conv) in (nn.Conv1d, nn.Conv2d, nn.Conv3d) or _is_tf_same(conv)


def _is_tf_same(conv: nn.Module) -> bool:
    return isinstance(conv, nn.Conv2d) and type(conv).__name__ in ("Conv2dSame", "Conv2dSameExport")


def geometry(conv: nn.Module) -> dict[str, Any]:
    """nn.Conv2d's arguments of a static convolution.

    Raises:
        ValueError: when it is not a plain convolution (weights standardised, deformable, ...).
    """
    if not is_static(conv):
        raise ValueError(f"conv={type(conv).__name__} must be a plain convolution")
    return {
        "in_channels": conv.in_channels,
        "out_channels": conv.out_channels,
        "kernel_size": conv.kernel_size,
        "stride": conv.stride,
        "padding": "tf_same" if _is_tf_same(conv) else conv.padding,
        "dilation": conv.dilation,
        "groups": conv.groups,
        "bias": conv.bias is not None,
        "padding_mode": conv.padding_mode,
    }


def place_like(layer: Module, conv: nn.Module) -> Module:
    """Give the layer the device, precision and mode of the convolution, and freeze it alike."""
    weight = next(conv.parameters())
    if not weight.requires_grad:
        layer.requires_grad_(False)
    return layer.to(weight.device, weight.dtype).train(conv.training)


class Annealed(nn.Module):
    """A layer whose softmax has a temperature: a buffer, saved with the model.

    Published checkpoints have no such entry; they load strictly all the same, and the temperature
    stays what it is.
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
    """Set the temperature of every layer inside that has one; give their number."""
    positive(temperature=value)
    layers = [m for m in module.modules() if isinstance(m, Annealed)]
    for layer in layers:
        layer.temperature.fill_(value)
    return len(layers)


class Linear1x1(nn.Conv2d):
    """A 1x1 convolution of a pooled map: official names and shapes, computed as a linear map.

    Shape:
        (B, C) -> (B, O).
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 1, bias=bias)

    def forward(self, input: Float[Tensor, "b c"]) -> Float[Tensor, "b o"]:
        return F.linear(input, self.weight.flatten(1), self.bias)


class _OneValue:
    """Batch norm that, in training, uses its running statistics for a single value a channel.

    One value has no variance (PyTorch raises an error, so the published ODConv cannot train at
    batch 1); the running statistics are what evaluation uses, and stay as they are.
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
    """Norm of a pooled vector (B, C): batch as published, layer or none for very small batches."""
    if norm == "batch":
        return BatchNorm1d(channels)
    if norm == "layer":
        return nn.LayerNorm(channels)
    if norm == "none":
        return nn.Identity()
    raise ValueError(f"norm={norm!r} must be 'batch', 'layer' or 'none'")


def map_norm(norm: Norm, channels: int) -> nn.Module:
    """Norm of a map (B, C, H, W); layer is a group norm of one group."""
    if norm == "layer":
        return nn.GroupNorm(1, channels)
    return BatchNorm2d(channels) if norm == "batch" else pooled_norm(norm, channels)


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """A context in which autocast does not touch the attention and the mixing of kernels."""
    kind = x.device.type
    return nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False)


def pool(x: Float[Tensor, "b c *s"], like: Tensor) -> Float[Tensor, "b c"]:
    """Global average, in the parameters' precision; a vector is its own."""
    return x.mean(tuple(range(2, x.dim())), dtype=like.dtype) if x.dim() > 2 else x.to(like.dtype)


def positive(**values: int | float) -> None:
    for name, value in values.items():
        if value <= 0:
            raise ValueError(f"{name}={value} must be positive")


def init_like_conv_(weight: Tensor, bias: Tensor | None) -> None:
    """Initialise every expert as nn.Conv2d initialises its kernel and its bias."""
    for kernel in weight:
        nn.init.kaiming_uniform_(kernel, a=math.sqrt(5))
    if bias is not None:
        bound = 1 / math.sqrt(math.prod(weight.shape[2:]))
        nn.init.uniform_(bias, -bound, bound)


def check_sizes(name: str, values: Sequence[int]) -> tuple[int, ...]:
    if not values or any(v < 1 for v in values):
        raise ValueError(f"{name}={tuple(values)} must be whole numbers >= 1")
    return tuple(values)


def resize_like(x: Float[Tensor, "b c h w"], like: Tensor) -> Tensor:
    """Resize a map bilinearly to another's height and width, where they differ."""
    size = like.shape[-2:]
    return x if x.shape[-2:] == size else F.interpolate(x, size, mode="bilinear")
