"""Layers computed as their papers and official codes compute them, to compare the fast forms with.

Samples are groups of one convolution, local filters read an unfolded map, 3x3 convolutions are
plain ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from condseg.layers import (
    CondConv1d,
    CondConv2d,
    CondConv3d,
    ConvSlot,
    DyConv1d,
    DyConv2d,
    DyConv3d,
    DynamicContextFilter2d,
    DynamicConv1d,
    DynamicConv2d,
    DynamicConv3d,
    DynamicDilatedFilter2d,
    DynamicLocalFilter2d,
    DyNetConv1d,
    DyNetConv2d,
    DyNetConv3d,
    ODConv1d,
    ODConv2d,
    ODConv3d,
    odconv,
)
from condseg.layers.parts import full_precision
from condseg.layers.per_sample import CONV
from condseg.layers.winograd import Conv3x3


def conv_samples_as_groups(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """:func:`condseg.layers.per_sample.conv_per_sample` as one convolution, for B >= 1."""
    batch, dims = len(x), x.dim() - 2
    together = x.reshape(1, -1, *x.shape[2:])  # (1, B C, *s)
    kernels = weight.flatten(0, 1)  # (B O, C/g, *k)
    y = CONV[dims](together, kernels, None, stride, padding, dilation, batch * groups)
    y = y.view(batch, -1, *y.shape[2:])  # (B, O, *s)
    return y if bias is None else y + bias.to(y.dtype).view(*bias.shape, *(1,) * dims)


def filter_unfolded(
    x: Tensor, filters: Tensor, kernel_size: tuple[int, int], dilation: int = 1
) -> Tensor:
    """:func:`condseg.layers.local_filter.filter_locally` of an unfolded map."""
    kh, kw = kernel_size
    padding = (dilation * (kh // 2), dilation * (kw // 2))
    windows = F.unfold(x, kernel_size, dilation, padding)  # (B, C T, H W)
    windows = windows.view(*x.shape[:2], -1, *x.shape[2:])  # (B, C, T, H, W)
    return (windows * filters.to(x.dtype)).sum(2)


class _Grouped(ConvSlot):
    """For the layers that differ in their kernels alone."""

    def _convolve(self, x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        x, padding = self.pad(x)
        return conv_samples_as_groups(
            x, kernel, bias, self.stride, padding, self.dilation, self.groups
        )


class _ODAttention(odconv.Attention):
    """Average pooling, and 1x1 convolutions of the map of one pixel."""

    def forward(self, x: Tensor, temperature: Tensor) -> odconv.ODAttention:
        pooled = x.to(self.fc.weight.dtype).mean(tuple(range(2, x.dim())))[..., None, None]
        hidden = F.relu(self.bn(_conv1x1(self.fc, pooled).flatten(1)))[..., None, None]
        heads = (self.channel_fc, self.filter_fc, self.spatial_fc, self.kernel_fc)
        channel, filter_, spatial, kernel = (
            None if h is None else _conv1x1(h, hidden).flatten(1) / temperature for h in heads
        )
        assert channel is not None
        return odconv.ODAttention(
            channel.sigmoid(),
            None if filter_ is None else filter_.sigmoid(),
            None if spatial is None else spatial.sigmoid(),
            None if kernel is None else kernel.softmax(1),
        )


def _conv1x1(layer: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, layer.weight, layer.bias)


class _ODConv(ODConv2d):
    """Channel and filter attentions scale the maps, the others are multiplied with the experts."""

    def forward(self, x: Tensor) -> Tensor:
        batch, ones = x.shape[0], (1,) * self.dims
        with full_precision(x):
            channel, filter_, spatial, experts = self._attend(x)
            factor = x.new_ones(batch, 1, *(1,) * (2 + self.dims), dtype=self.weight.dtype)
            if spatial is not None:
                factor = factor * spatial.view(batch, 1, 1, 1, *self.kernel_size)
            if experts is not None:
                factor = factor * experts.view(batch, -1, 1, 1, *ones)
            # (B, E, O, C/g, *k) -> (B, O, C/g, *k)
            kernel = (factor * self.experts(self.weight)).sum(1)
        x, padding = self.pad(x * channel.to(x.dtype).view(batch, -1, *ones))
        y = conv_samples_as_groups(
            x, kernel, None, self.stride, padding, self.dilation, self.groups
        )
        if filter_ is not None:
            y = y * filter_.to(y.dtype).view(batch, -1, *ones)
        return y if self.bias is None else y + self.bias.to(y.dtype).view(-1, *ones)


class _LocalFilter(DynamicLocalFilter2d):
    def _filter(self, x: Tensor, filters: Tensor) -> Tensor:
        by_tap = filters.unflatten(1, (self.groups, -1))
        y = filter_unfolded(x, by_tap, self.kernel_size, self.dilation)
        return y.sum(1, keepdim=True) if self.mode == "joint" else y


class _DilatedFilter(DynamicDilatedFilter2d):
    def filter(self, x: Tensor, kernels: Tensor) -> Tensor:
        return filter_unfolded(x, kernels, (self.kernel_size, self.kernel_size), self.dilation)


class _ContextFilter(DynamicContextFilter2d):
    def _convolve(self, x: Tensor, kernels: Tensor, padding: int) -> Tensor:
        return conv_samples_as_groups(x, kernels, padding=(padding,) * 2, groups=x.shape[1])


class _PlainConv3x3(Conv3x3):
    def forward(self, x: Any) -> Any:
        if isinstance(x, Tensor):
            return nn.Conv2d.forward(self, x)
        return [nn.Conv2d.forward(self, each) for each in x]


_GROUPED = (
    *(CondConv1d, CondConv2d, CondConv3d),
    *(DyConv1d, DyConv2d, DyConv3d),
    *(DyNetConv1d, DyNetConv2d, DyNetConv3d),
    *(DynamicConv1d, DynamicConv2d, DynamicConv3d),
)
LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    fast: type(f"Published{fast.__name__}", (published, fast), {})
    for published, fasts in (
        (_Grouped, _GROUPED),
        (_ODConv, (ODConv1d, ODConv3d)),
    )
    for fast in fasts
} | {
    ODConv2d: _ODConv,
    odconv.Attention: _ODAttention,
    DynamicLocalFilter2d: _LocalFilter,
    DynamicDilatedFilter2d: _DilatedFilter,
    DynamicContextFilter2d: _ContextFilter,
    Conv3x3: _PlainConv3x3,
}
"""Type of a fast module -> type of its published form, which has the same attributes."""
