"""3x3 convolutions with a quarter of the multiplications (Winograd), and their gradients.

What they compute is that of ``nn.Conv2d``; how, is told in ``condseg/native/winograd.cpp``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from condseg import native
from condseg.layers.implementation import Implementation

TILE, PAIRS = 4, 36
LEAST_CHANNELS, LEAST_TILES, LEAST_TILES_OTHERWISE = 32, 24, 512
"""Below I O / (I + O) channels, or so many tiles of 4x4 pixels, the plain sum is as fast; the last
is for maps that are not in channels_last."""


def conv3x3(
    x: Float[Tensor, "b c h w"],
    weight: Float[Tensor, "o c 3 3"],
    bias: Float[Tensor, " o"] | None = None,
) -> Float[Tensor, "b o h w"]:
    """The convolution with one pixel of zeros around the map, by the way that takes less time.

    On the CPU, in float32 and with many channels that is Winograd's, whose rounding is some six
    times that of the plain sum (1e-6 of the result, relative L2). Forward, the result is laid out
    in channels_last; unless the map is so, too, it must be a large one, or what is won is lost
    again on the way. Where gradients are wanted, only they are computed so, and differ from those
    of the plain sum by 4e-6 in FCOS's head: a forward pass that rounds more puts more units on the
    other side of a ReLU's kink, and moved them by 2.6e-3. GPUs' libraries choose by themselves.

    Args:
        x: the map.
        weight, bias: as ``nn.Conv2d`` has them.

    Source:
        Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016),
        section 4; here with other points.
    """
    if _pays(x, weight):
        pixelwise = x.is_contiguous(memory_format=torch.channels_last)
        if not torch.is_grad_enabled() and (pixelwise or _tiles(x.shape) >= LEAST_TILES_OTHERWISE):
            y: Tensor = torch.ops.condseg.conv3x3(x, weight, bias, False)
            return y
        if not torch.compiler.is_compiling() and (x.requires_grad or weight.requires_grad):
            apply: Callable[..., Tensor] = _WinogradBackward.apply
            return apply(x, weight, bias)
    return F.conv2d(x, weight, bias, padding=1)


class Conv3x3(nn.Conv2d):
    """A plain 3x3 convolution that takes the faster way; see :func:`conv3x3`.

    Attributes:
        implementation: "reference" is the plain sum always.
    """

    implementation: Implementation = "fast"

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o h w"]:
        if self.implementation == "reference":
            return super().forward(x)
        return conv3x3(x, self.weight, self.bias)


def quicken_(network: nn.Module) -> int:
    """Have every plain 3x3 convolution inside be a :class:`Conv3x3`; give their number.

    The modules stay the same objects, with their parameters, hooks and names.
    """
    plain = [m for m in network.modules() if type(m) is nn.Conv2d and _is_3x3(m)]
    for conv in plain:
        conv.__class__ = Conv3x3
    return len(plain)


def _is_3x3(conv: nn.Conv2d) -> bool:
    same = conv.padding in ((1, 1), "same") and conv.padding_mode == "zeros"
    shape = (conv.kernel_size, conv.stride, conv.dilation, conv.groups)
    return same and shape == ((3, 3), (1, 1), (1, 1), 1)


def _pays(x: Tensor, weight: Tensor) -> bool:
    if torch.is_autocast_enabled("cpu") or not native.takes(x, weight):
        return False
    out_channels, channels = weight.shape[:2]
    # Products over the channels save time, the way to the 36 pairs and back takes some.
    wide = channels * out_channels >= LEAST_CHANNELS * (channels + out_channels)
    return wide and _tiles(x.shape) >= LEAST_TILES


def _tiles(shape: torch.Size) -> int:
    return shape[0] * -(-shape[2] // TILE) * -(-shape[3] // TILE)


def _like_result(x: Tensor, weight: Tensor, bias: Tensor | None, adjoint: bool) -> Tensor:
    channels = weight.shape[1] if adjoint else weight.shape[0]
    return x.new_empty(len(x), *x.shape[2:], channels).permute(0, 3, 1, 2)


def _products(x: torch.Size, weight: torch.Size, *_: Any) -> int:
    return PAIRS * _tiles(x) * weight[0] * weight[1]


@native.operator(
    "conv3x3(Tensor x, Tensor weight, Tensor? bias, bool adjoint) -> Tensor",
    _like_result,
    _products,
)
def _conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None, adjoint: bool) -> Tensor:
    """The convolution, or its adjoint, which makes the gradient of x of that of the result."""
    y = _like_result(x, weight, bias, adjoint)
    if weight.stride(2) != 3 * weight.stride(3):
        weight = weight.contiguous()
    by_out_channel, by_channel, _, by_tap = weight.stride()
    if adjoint:
        by_out_channel, by_channel, by_tap = by_channel, by_out_channel, -by_tap
    (batch, channels, *size), out_channels = x.shape, y.shape[1]
    native.call(
        "conv3x3",
        x.permute(0, 2, 3, 1).contiguous(),
        weight.as_strided((1,), (1,)),  # where it begins
        None if bias is None else bias.contiguous(),
        y.permute(0, 2, 3, 1),
        native.scratch("conv3x3", channels, out_channels),
        *(batch, *size, channels, out_channels, by_out_channel, by_channel, by_tap),
    )
    return y


@native.operator(
    "conv3x3_weight(Tensor x, Tensor grad_y) -> Tensor",
    lambda x, grad_y: x.new_empty(grad_y.shape[1], x.shape[1], 3, 3),
    lambda x, grad_y: PAIRS * _tiles(x) * x[1] * grad_y[1],
)
def _conv3x3_weight(x: Tensor, grad_y: Tensor) -> Tensor:
    (batch, channels, *size), out_channels = x.shape, grad_y.shape[1]
    grad_weight = x.new_empty(out_channels, channels, 3, 3)
    native.call(
        "conv3x3_weight",
        x.permute(0, 2, 3, 1).contiguous(),
        grad_y.permute(0, 2, 3, 1).contiguous(),
        grad_weight,
        native.scratch("conv3x3_weight", channels, out_channels),
        *(batch, *size, channels, out_channels),
    )
    return grad_weight


class _WinogradBackward(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, padding=1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _ = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        grad_y = grad_y.contiguous(memory_format=torch.channels_last)
        return (
            torch.ops.condseg.conv3x3(grad_y, weight, None, True) if for_x else None,
            torch.ops.condseg.conv3x3_weight(x, grad_y) if for_weight else None,
            grad_y.sum((0, 2, 3)) if for_bias else None,
        )
