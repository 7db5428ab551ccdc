"""3x3 convolutions with a quarter of the multiplications (Winograd), and their gradients.

The output is that of ``nn.Conv2d``; the algorithm is in ``condseg/native/winograd.cpp``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from condseg import native

TILE, PAIRS = 4, 36
MIN_CHANNELS, MIN_TILES, MIN_TILES_CONTIGUOUS = 32, 24, 512
"""Minimal I O / (I + O) channels, tiles of 4x4 pixels, and tiles if not in channels_last: below
them a plain convolution is as fast."""

MATRIX_UNIT = bool(torch.cpu.get_capabilities().get("amx_tile", False))
"""Whether the processor has a unit for products of half-precision matrices."""


def conv3x3(
    x: Float[Tensor, "b c h w"],
    weight: Float[Tensor, "o c 3 3"],
    bias: Float[Tensor, " o"] | None = None,
) -> Float[Tensor, "b o h w"]:
    """:func:`conv3x3_maps` of one map."""
    return conv3x3_maps([x], weight, bias)[0]


def conv3x3_maps(
    maps: Sequence[Float[Tensor, "b c _h _w"]],
    weight: Float[Tensor, "o c 3 3"],
    bias: Float[Tensor, " o"] | None = None,
) -> list[Float[Tensor, "b o _h _w"]]:
    """3x3 convolution with padding 1 of each map, by Winograd's algorithm where it is faster.

    It is faster on CPU, in float32, with many channels. Its rounding error is about six times that
    of a plain convolution (1e-6 of the output, relative L2). Outputs are in channels_last; inputs
    of another memory format must be large, or the conversion costs what Winograd saves.

    With gradients, only the backward pass uses it, which moves the gradients of FCOS's head by
    4e-6. (The larger rounding error of its forward pass would put more units on the other side of
    a ReLU's kink and move them by 2.6e-3.) Under autocast without gradients it is used in float32,
    faster than a plain convolution in half precision, unless the processor has a matrix unit.
    On GPUs, cuDNN selects the algorithm.

    Args:
        maps: one, or several (a pyramid's levels), for which the kernels are transformed once.
        weight, bias: as in ``nn.Conv2d``.

    Source:
        Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016),
        section 4; here with other points.
    """
    if _is_faster(maps, weight):
        channels_last = all(x.is_contiguous(memory_format=torch.channels_last) for x in maps)
        if not torch.is_grad_enabled() and (channels_last or _tiles(maps) >= MIN_TILES_CONTIGUOUS):
            single = [x.float() for x in maps]
            results: list[Tensor] = torch.ops.condseg.conv3x3(single, weight, bias, False)
            return results
        trained = any(t.requires_grad for t in (weight, *maps))
        if trained and not torch.compiler.is_compiling():
            apply: Callable[..., tuple[Tensor, ...]] = _WinogradBackward.apply
            return list(apply(weight, bias, *maps))
    return _plain(maps, weight, bias)


class Conv3x3(nn.Conv2d):
    """3x3 convolution of one map or several, by :func:`conv3x3_maps`; stride 1, padding 1.

    Args:
        in_channels, out_channels, bias: as in ``nn.Conv2d``.

    Shape:
        (B, C, H, W) -> (B, O, H, W); a list of maps -> the list of their results.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias)

    def forward(self, x: Any) -> Any:
        single = isinstance(x, Tensor)
        results = conv3x3_maps([x] if single else x, self.weight, self.bias)
        return results[0] if single else results


def use_conv3x3_(network: nn.Module) -> int:
    """Replace every plain 3x3 convolution inside the network by a :class:`Conv3x3`.

    The parameters stay the same objects, and the state dict's keys the same. Convolutions that
    have hooks are kept.

    Returns:
        The number of convolutions replaced.
    """
    built: dict[nn.Module, Conv3x3] = {}
    for name, conv in list(network.named_modules(remove_duplicate=False)):
        if not name or type(conv) is not nn.Conv2d or not _is_3x3(conv):
            continue
        if conv._forward_hooks or conv._forward_pre_hooks:
            continue
        if conv not in built:
            with torch.device("meta"):  # draws no random numbers
                built[conv] = Conv3x3(conv.in_channels, conv.out_channels, conv.bias is not None)
            built[conv].weight, built[conv].bias = conv.weight, conv.bias
            built[conv].train(conv.training)
        network.set_submodule(name, built[conv])
    return len(built)


def _is_3x3(conv: nn.Conv2d) -> bool:
    same = conv.padding in ((1, 1), "same") and conv.padding_mode == "zeros"
    shape = (conv.kernel_size, conv.stride, conv.dilation, conv.groups)
    return same and shape == ((3, 3), (1, 1), (1, 1), 1)


def _is_faster(maps: Sequence[Tensor], weight: Tensor) -> bool:
    if torch.compiler.is_exporting():
        return False  # other runtimes do not have the operator
    dtypes = {torch.float32}
    if torch.is_autocast_enabled("cpu"):
        if torch.is_grad_enabled() or MATRIX_UNIT:
            return False
        dtypes.add(torch.get_autocast_dtype("cpu"))
    if any(x.device != weight.device or x.dtype not in dtypes for x in maps):
        return False
    out_channels, channels = weight.shape[:2]
    # Products over the channels save time, the transforms to the 36 pairs and back cost time.
    wide = channels * out_channels >= MIN_CHANNELS * (channels + out_channels)
    return wide and _tiles(maps) >= MIN_TILES and native.supports(weight)


def _plain(maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None) -> list[Tensor]:
    if len(maps) > 1 and maps[0].is_contiguous(memory_format=torch.channels_last):
        weight = weight.contiguous(memory_format=torch.channels_last)  # once for all maps
    return [F.conv2d(x, weight, bias, padding=1) for x in maps]


def _tiles(maps: Sequence[Tensor | torch.Size]) -> int:
    shapes = [x.shape if isinstance(x, Tensor) else x for x in maps]
    return sum(n * -(-h // TILE) * -(-w // TILE) for n, _, h, w in shapes)


def _empty_results(
    maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None, adjoint: bool
) -> list[Tensor]:
    channels = weight.shape[1] if adjoint else weight.shape[0]
    return [x.new_empty(len(x), *x.shape[2:], channels).permute(0, 3, 1, 2) for x in maps]


def _products(maps: Sequence[torch.Size], weight: torch.Size, *_: Any) -> int:
    return PAIRS * _tiles(maps) * weight[0] * weight[1]


@native.operator(
    "conv3x3(Tensor[] maps, Tensor weight, Tensor? bias, bool adjoint) -> Tensor[]",
    _empty_results,
    _products,
)
def _conv3x3(
    maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None, adjoint: bool
) -> list[Tensor]:
    """The convolution, or its adjoint, which computes gradients of maps from those of results."""
    results = _empty_results(maps, weight, bias, adjoint)
    if weight.stride(2) != 3 * weight.stride(3):
        weight = weight.contiguous()
    out_channels, channels = weight.shape[:2]
    by_out_channel, by_channel, _, by_tap = weight.stride()
    if adjoint:
        out_channels, channels = channels, out_channels
        by_out_channel, by_channel, by_tap = by_channel, by_out_channel, -by_tap
    xs = _channels_last(maps)
    native.call(
        "conv3x3",
        _addresses(xs, _channels_last(results)),
        len(xs),
        weight.as_strided((1,), (1,)),  # its address
        None if bias is None else bias.contiguous(),
        native.scratch("conv3x3", channels, out_channels),
        *(channels, out_channels, by_out_channel, by_channel, by_tap),
    )
    return results


@native.operator(
    "conv3x3_weight(Tensor[] maps, Tensor[] grads) -> Tensor",
    lambda maps, grads: maps[0].new_empty(grads[0].shape[1], maps[0].shape[1], 3, 3),
    lambda maps, grads: PAIRS * _tiles(maps) * maps[0][1] * grads[0][1],
)
def _conv3x3_weight(maps: Sequence[Tensor], grads: Sequence[Tensor]) -> Tensor:
    channels, out_channels = maps[0].shape[1], grads[0].shape[1]
    grad_weight = maps[0].new_empty(out_channels, channels, 3, 3)
    xs, ys = _channels_last(maps), _channels_last(grads)
    native.call(
        "conv3x3_weight",
        _addresses(xs, ys),
        len(xs),
        grad_weight,
        native.scratch("conv3x3_weight", channels, out_channels),
        *(channels, out_channels),
    )
    return grad_weight


def _channels_last(maps: Sequence[Tensor]) -> list[Tensor]:
    """(B, C, H, W) -> contiguous (B, H, W, C); no copy of a map in channels_last."""
    return [x.permute(0, 2, 3, 1).contiguous() for x in maps]


def _addresses(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> list[int]:
    """``Maps`` of ``winograd.cpp``: addresses of tensors (B, H, W, C), which the caller keeps."""
    rows = [(x.data_ptr(), y.data_ptr(), *x.shape[:3]) for x, y in zip(xs, ys, strict=True)]
    return [number for row in rows for number in row]


class _WinogradBackward(torch.autograd.Function):
    @staticmethod
    def forward(weight: Tensor, bias: Tensor | None, *maps: Tensor) -> tuple[Tensor, ...]:
        return tuple(_plain(maps, weight, bias))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        weight, _, *maps = inputs
        ctx.save_for_backward(weight, *maps)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, *maps = ctx.saved_tensors
        for_weight, for_bias, *for_maps = ctx.needs_input_grad
        loops = torch.ops.condseg
        ys = [grad.contiguous(memory_format=torch.channels_last) for grad in grads]
        return (
            loops.conv3x3_weight(maps, ys) if for_weight else None,
            torch.stack([y.sum((0, 2, 3)) for y in ys]).sum(0) if for_bias else None,
            *(loops.conv3x3(ys, weight, None, True) if any(for_maps) else [None] * len(maps)),
        )
