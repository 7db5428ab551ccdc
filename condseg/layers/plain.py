"""Plain convolutions: their types, their arguments, and anything that is built from these."""

from __future__ import annotations

from typing import Any, Protocol, TypeGuard, TypeVar, runtime_checkable

from torch import nn

from condseg.layers.winograd import Conv3x3

Module = TypeVar("Module", bound=nn.Module)
STATIC: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


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


def is_static(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether the module is a plain convolution, which the layers can replace."""
    return type(conv) in (*STATIC.values(), Conv3x3) or _is_tf_same(conv)


def timm_same_conv() -> Any:
    """timm's convolution with TensorFlow's SAME padding; None without timm."""
    try:
        from timm.layers import Conv2dSame
    except ImportError:
        return None
    return Conv2dSame


def _is_tf_same(conv: nn.Module) -> bool:
    return isinstance(conv, nn.Conv2d) and type(conv).__name__ in ("Conv2dSame", "Conv2dSameExport")


def geometry(conv: nn.Module) -> dict[str, Any]:
    """nn.Conv2d's arguments of a static convolution.

    Raises:
        ValueError: it is not a plain convolution (weights standardised, deformable, ...).
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
    """Move the layer to the convolution's device, dtype and mode; freeze it if that is frozen."""
    weight = next(conv.parameters())
    if not weight.requires_grad:
        layer.requires_grad_(False)
    return layer.to(weight.device, weight.dtype).train(conv.training)
