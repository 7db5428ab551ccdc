"""Dynamic local filtering: every position has a filter of its own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

BLOCK = 2**18
"""Elements of a map processed at a time: about a core's cache."""


def filter_locally(
    x: Float[Tensor, "b c h w"],
    filters: Float[Tensor, "b f t h w"],
    kernel_size: tuple[int, int],
    dilation: int = 1,
) -> Float[Tensor, "b c h w"]:
    r"""Filter every position with its own kernel (dynamic local filtering).

    .. math:: y_{c,p} = \sum_t k_{c,t,p}\; x_{c,\, p + d \delta_t}, \qquad
        \delta_t = (t \div k_w - k_h \div 2,\; t \bmod k_w - k_w \div 2)

    The unfolded map, T times as large as x, is never in memory, neither forward nor backward: taps
    are summed one by one, in blocks that stay in the cache.

    Args:
        x: the map; zeros lie outside of it.
        filters: T = k_h * k_w taps, row-major, per channel and position, or per position.
        kernel_size: (height, width), odd.
        dilation: distance of neighbouring taps in pixels.

    Shape:
        (B, C, H, W) and (B, C or 1, T, H, W) -> (B, C, H, W).
    """
    filters = filters.to(x.dtype)
    if torch.compiler.is_compiling():
        return _tap_by_tap(x, filters, kernel_size, dilation)  # compiled into one loop
    shape = x.shape
    if filters.shape[1] == x.shape[1]:
        # Channels that share no filter are independent, like samples.
        x, filters = x.reshape(-1, 1, *x.shape[2:]), filters.reshape(-1, 1, *filters.shape[2:])
    apply: Callable[..., Tensor] = _FilterLocally.apply
    return apply(x, filters, kernel_size, dilation).view(shape)


def _tap_by_tap(x: Tensor, filters: Tensor, kernel_size: tuple[int, int], dilation: int) -> Tensor:
    y, padded = torch.zeros_like(x), _pad(x, kernel_size, dilation)
    for tap, rows, columns in _windows(x, kernel_size, dilation):
        y = torch.addcmul(y, padded[..., rows, columns], filters[:, :, tap])
    return y


class _FilterLocally(torch.autograd.Function):
    """The same sum, and its gradients, in place."""

    @staticmethod
    def forward(x: Tensor, filters: Tensor, kernel_size: tuple[int, int], dilation: int) -> Tensor:
        y = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
        for block in _blocks(x):
            part, kernels, result = x[block], filters[block], y[block]
            padded = _pad(part, kernel_size, dilation)
            for tap, rows, columns in _windows(part, kernel_size, dilation):
                result.addcmul_(padded[..., rows, columns], kernels[:, :, tap])
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, filters, ctx.kernel_size, ctx.dilation = inputs
        ctx.save_for_backward(x, filters)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, filters = ctx.saved_tensors
        grad_y = grad_y.contiguous()
        grad_x, grad_filters = torch.empty_like(x), torch.empty_like(filters)
        shared = filters.shape[1] < x.shape[1]
        for block in _blocks(x):
            part, kernels, grad = x[block], filters[block], grad_y[block]
            padded = _pad(part, ctx.kernel_size, ctx.dilation)
            grad_padded = torch.zeros_like(padded)
            for tap, rows, columns in _windows(part, ctx.kernel_size, ctx.dilation):
                grad_padded[..., rows, columns].addcmul_(grad, kernels[:, :, tap])
                window, grad_kernel = padded[..., rows, columns], grad_filters[block][:, :, tap]
                if shared:
                    torch.sum(grad * window, 1, keepdim=True, out=grad_kernel)
                else:
                    torch.mul(grad, window, out=grad_kernel)
            dy, dx = _margins(ctx.kernel_size, ctx.dilation)
            height, width = x.shape[2:]
            grad_x[block] = grad_padded[..., dy : dy + height, dx : dx + width]
        return grad_x, grad_filters, None, None


def _blocks(x: Tensor) -> Iterator[slice]:
    size = max(1, BLOCK // max(1, math.prod(x.shape[1:])))
    return (slice(start, start + size) for start in range(0, len(x), size))


def _margins(kernel_size: tuple[int, int], dilation: int) -> tuple[int, int]:
    return dilation * (kernel_size[0] // 2), dilation * (kernel_size[1] // 2)


def _pad(x: Tensor, kernel_size: tuple[int, int], dilation: int) -> Tensor:
    dy, dx = _margins(kernel_size, dilation)
    return F.pad(x, (dx, dx, dy, dy))


def _windows(
    x: Tensor, kernel_size: tuple[int, int], dilation: int
) -> Iterator[tuple[int, slice, slice]]:
    """Each tap, and the rows and columns of the padded map that it reads."""
    height, width = x.shape[-2:]
    for tap, (i, j) in enumerate(itertools.product(*map(range, kernel_size))):
        top, left = dilation * i, dilation * j
        yield tap, slice(top, top + height), slice(left, left + width)
