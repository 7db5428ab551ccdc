"""The slow, obvious versions: loops over samples, experts, channels and pixels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from condseg.layers import ODConv2d


def conv_per_sample(x: Tensor, weight: Tensor, bias: Tensor | None, **where: Any) -> Tensor:
    rows = [
        F.conv2d(x[i : i + 1], weight[i], None if bias is None else bias[i], **where)
        for i in range(len(x))
    ]
    return torch.cat(rows)


def filter_locally(
    x: Tensor, filters: Tensor, kernel_size: tuple[int, int], dilation: int
) -> Tensor:
    """filters (B, C, T, H, W), pixel by pixel."""
    (kh, kw), y = kernel_size, torch.zeros_like(x)
    batch, channels, height, width = x.shape
    for b in range(batch):
        for c in range(channels):
            for i in range(height):
                for j in range(width):
                    for t in range(kh * kw):
                        p = i + dilation * (t // kw - kh // 2)
                        q = j + dilation * (t % kw - kw // 2)
                        if 0 <= p < height and 0 <= q < width:
                            y[b, c, i, j] += filters[b, c, t, i, j] * x[b, c, p, q]
    return y


def odconv(layer: ODConv2d, x: Tensor) -> Tensor:
    """All attentions as factors of the kernel, one sample after the other."""
    rows = []
    for sample in x:
        a = layer.attention(sample[None], layer.temperature)
        kernel = torch.zeros_like(layer.weight[0])
        for e in range(layer.num_experts):
            share = 1.0 if a.kernel is None else a.kernel[0, e]
            kernel = kernel + share * layer.weight[e]
        if a.spatial is not None:
            kernel = kernel * a.spatial[0].view(layer.kernel_size)
        if a.filter is not None:
            kernel = kernel * a.filter[0].view(-1, 1, 1, 1)
        scaled, padding = layer.pad(sample[None] * a.channel[0].view(-1, 1, 1))
        rows.append(
            F.conv2d(
                scaled, kernel, layer.bias, layer.stride, padding, layer.dilation, layer.groups
            )
        )
    return torch.cat(rows)
