"""3x3 convolutions with a quarter of the multiplications (Winograd), and their gradients.

What a 4x4 tile of the result needs of the map is a tile of 6x6. Read as polynomials, the map and
the kernel are multiplied by their values at six points of each axis, so that for each of the 36
pairs of points there is one matrix product over the channels. Where the 36 values come from and
go to is itself a product with a small matrix, and costs as much as some 60 channels: see
``LEAST_CHANNELS``.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from condseg.layers.implementation import Implementation

TILE = 4  # pixels of the result, each way
SEEN = TILE + 2  # pixels of the map
PAIRS = SEEN * SEEN
POINTS = (0.0, 2 / 3, -2 / 3, 4 / 3, -4 / 3)  # and infinity; rounding is least with these
BLOCK = 2**21
"""Numbers of a buffer that is worked on at a time: about what a processor's cache holds."""
LEAST_CHANNELS, LEAST_TILES = 64, 128
"""Below I O / (I + O) channels, or so many tiles, the plain sum is as fast (two cores of an AMD
EPYC; 1.4 to 1.6 times as fast as the plain sum forward with 128 or 256 channels, 1.3 to 1.9 times
backward)."""


def conv3x3(
    x: Float[Tensor, "b c h w"],
    weight: Float[Tensor, "o c 3 3"],
    bias: Float[Tensor, " o"] | None = None,
) -> Float[Tensor, "b o h w"]:
    """The convolution with one pixel of zeros around the map, by the way that takes less time.

    On the CPU, in float32 and with many channels that is Winograd's, whose rounding is some six
    times that of the plain sum (1e-6 of the result, relative L2), and whose result is laid out in
    channels_last. Where gradients are wanted, only they are computed so: a forward pass that rounds
    more puts more units on the other side of a ReLU's kink, and moved the gradients of FCOS's head
    by 2.6e-3, where the plain sum's rounding moves them by 2.7e-4. GPUs' libraries choose by
    themselves.

    Args:
        x: the map.
        weight, bias: as ``nn.Conv2d`` has them.

    Source:
        Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016),
        section 4; here with other points.
    """
    if _pays(x, weight):
        if not torch.is_grad_enabled():
            return _forward(x, weight, bias)
        if x.requires_grad or weight.requires_grad:
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
    if x.device.type != "cpu" or not x.dtype == weight.dtype == torch.float32:
        return False
    if torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return False
    out_channels, channels = weight.shape[:2]
    tiles = len(x) * -(-x.shape[2] // TILE) * -(-x.shape[3] // TILE)
    # Products over the channels save time, the way to the 36 pairs and back takes some.
    wide = channels * out_channels >= LEAST_CHANNELS * (channels + out_channels)
    return wide and tiles >= LEAST_TILES


@functools.cache
def _matrices(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """What makes of a tile of the map its values (36, 36), of a kernel (36, 9), and of products a
    tile of the result (16, 36)."""

    def values(coefficients: int) -> Tensor:
        """(6, coefficients): a polynomial's values at the points; at infinity, its leading term."""
        points = torch.tensor(POINTS, dtype=torch.float64)
        infinity = torch.zeros(1, coefficients, dtype=torch.float64)
        infinity[0, -1] = 1
        return torch.cat((torch.vander(points, coefficients, increasing=True), infinity))

    # The product of two polynomials, E^-1 (E k * E' t), transposed: E'^T (E k * E^-T x).
    axis = (torch.linalg.inv(values(SEEN)).T, values(3), values(TILE).T)
    of_map, of_kernel, of_result = (torch.kron(m, m).to(dtype) for m in axis)
    return of_map, of_kernel, of_result


class _Tiles(NamedTuple):
    """How maps are cut.

    Attributes:
        batch, down, across: tiles.
        channels: the most that a tile has.
    """

    batch: int
    down: int
    across: int
    channels: int

    @classmethod
    def of(cls, x: Tensor, weight: Tensor) -> _Tiles:
        down, across = (-(-size // TILE) for size in x.shape[2:])
        return cls(len(x), down, across, max(weight.shape[:2]))

    def pad(self, x: Tensor, border: int) -> Tensor:
        """Pixel by pixel (B, H, W, C), filled up to whole tiles, with a border of zeros."""
        batch, channels, height, width = x.shape
        size = (TILE * self.down + 2 * border, TILE * self.across + 2 * border)
        padded = x.new_empty(batch, *size, channels)
        rows, columns = slice(border, border + height), slice(border, border + width)
        padded[:, rows, columns] = x.permute(0, 2, 3, 1)
        for outside in (slice(border), slice(border + height, None)):
            padded[:, outside] = 0
        for outside in (slice(border), slice(border + width, None)):
            padded[:, rows, outside] = 0
        return padded

    def blocks(self) -> Iterator[tuple[slice, slice]]:
        """Pictures and rows of tiles of each block; the first is as large as any."""
        most = max(1, BLOCK // (PAIRS * self.channels * self.across))  # rows
        rows = _evenly(self.down, most)
        pictures = _evenly(self.batch, most // rows) if rows == self.down else 1
        for picture in range(0, self.batch, pictures):
            for row in range(0, self.down, rows):
                yield (
                    slice(picture, min(picture + pictures, self.batch)),
                    slice(row, min(row + rows, self.down)),
                )

    def buffers(self, like: Tensor, count: int) -> Sequence[Tensor]:
        """Each holds the 36 numbers a channel of a block's tiles."""
        pictures, rows = next(self.blocks())
        tiles = (pictures.stop - pictures.start) * (rows.stop - rows.start) * self.across
        return like.new_empty(count, tiles * PAIRS * self.channels).unbind()

    def windows(self, maps: Tensor, block: tuple[slice, slice], side: int) -> Tensor:
        """View (pictures, rows, across, side, side, C) of maps that are pixel by pixel."""
        pictures, rows = block
        part = maps[pictures, TILE * rows.start :]
        b, y, x, c = part.stride()
        shape = (len(part), rows.stop - rows.start, self.across, side, side, part.shape[3])
        return part.as_strided(shape, (b, TILE * y, TILE * x, y, x, c))


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    tiles, (height, width), out = _Tiles.of(x, weight), x.shape[2:], len(weight)
    of_map, of_kernel, of_result = _matrices(x.dtype)
    kernels = _values(of_kernel, weight.permute(2, 3, 1, 0))
    padded = tiles.pad(x, 1)
    y = x.new_empty(len(x), TILE * tiles.down, TILE * tiles.across, out)
    a, b = tiles.buffers(x, 2)
    for block in tiles.blocks():
        values = _times(of_map, _copy(tiles.windows(padded, block, SEEN), a), b)
        result = _times(of_result, _by_pair(values, kernels, a), b)
        target = tiles.windows(y, block, TILE)
        result = result.view(target.shape)
        target.copy_(result) if bias is None else torch.add(result, bias, out=target)
    return y[:, :height, :width].contiguous().permute(0, 3, 1, 2)


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
        tiles, (height, width), (out, channels) = (
            _Tiles.of(x, weight),
            x.shape[2:],
            weight.shape[:2],
        )
        of_map, of_kernel, of_result = _matrices(x.dtype)
        grads, padded = tiles.pad(grad_y, 0), tiles.pad(x, 1)
        kernels = _values(of_kernel, weight.permute(2, 3, 0, 1))
        grad_padded = x.new_zeros(
            len(x), TILE * (tiles.down + 1), TILE * (tiles.across + 1), channels if for_x else 0
        )
        grad_kernels = x.new_zeros(PAIRS, channels, out)
        a, b, c = tiles.buffers(x, 3)
        for block in tiles.blocks():
            grad = _times(of_result.T, _copy(tiles.windows(grads, block, TILE), a), b)
            if for_weight:
                values = _times(of_map, _copy(tiles.windows(padded, block, SEEN), a), c)
                grad_kernels.baddbmm_(values.permute(1, 2, 0), grad.transpose(0, 1))
            if for_x:
                target = tiles.windows(grad_padded, block, SEEN)
                seen = _times(of_map.T, _by_pair(grad, kernels, a), c).view(target.shape)
                # The windows overlap by two pixels; these parts of them do not.
                for i, j in itertools.product((slice(TILE), slice(TILE, SEEN)), repeat=2):
                    target[..., i, j, :].add_(seen[..., i, j, :])
        grad_x = grad_padded[:, 1 : height + 1, 1 : width + 1].permute(0, 3, 1, 2)
        grad_weight = (of_kernel.T @ grad_kernels.flatten(1)).view(3, 3, channels, out)
        return (
            grad_x if for_x else None,
            grad_weight.permute(3, 2, 0, 1).contiguous() if for_weight else None,
            grad_y.sum((0, 2, 3)) if for_bias else None,
        )


def _evenly(count: int, most: int) -> int:
    """The size of parts of about the same size, at most so large."""
    return math.ceil(count / math.ceil(count / most))


def _values(matrix: Tensor, weight: Tensor) -> Tensor:
    """(36, I, O) of kernels (3, 3, I, O)."""
    return (matrix @ weight.reshape(9, -1)).view(PAIRS, *weight.shape[2:])


def _copy(windows: Tensor, buffer: Tensor) -> Tensor:
    """Windows (..., s, s, C) into a buffer: (T, s s, C)."""
    copied = buffer[: windows.numel()].view(windows.shape).copy_(windows)
    return copied.flatten(3, 4).flatten(0, 2)


def _times(matrix: Tensor, tiles: Tensor, buffer: Tensor) -> Tensor:
    """(r, s) @ (T, s, C) into a buffer: (T, r, C)."""
    count, _, channels = tiles.shape
    result = buffer[: count * len(matrix) * channels].view(count, -1, channels)
    return torch.bmm(matrix.expand(count, -1, -1), tiles, out=result)


def _by_pair(values: Tensor, kernels: Tensor, buffer: Tensor) -> Tensor:
    """Each of the 36 (I,) of (T, 36, I) times its own (I, O), into a buffer: (T, 36, O)."""
    count, out = len(values), kernels.shape[2]
    result = buffer[: count * PAIRS * out].view(count, PAIRS, out)
    torch.bmm(values.transpose(0, 1), kernels, out=result.transpose(0, 1))
    return result
