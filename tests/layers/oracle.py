"""The slow, obvious versions: loops over samples, experts, channels and pixels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condseg.layers import CondConv2d, ConvSlot, DyConv2d, DynamicConv2d, DyNetConv2d, ODConv2d


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


def shares(layer: ConvSlot, pooled: Tensor) -> Tensor:
    """How much of each expert each output channel of one sample takes, (E, O)."""
    if isinstance(layer, CondConv2d):
        routing = 1 / (1 + torch.exp(-(layer.routing_fn.weight @ pooled + layer.routing_fn.bias)))
        return routing[:, None].expand(-1, layer.out_channels)
    if isinstance(layer, DyConv2d):
        hidden = (layer.attention.fc1.weight.flatten(1) @ pooled).clamp(min=0)
        logits = layer.attention.fc2.weight.flatten(1) @ hidden + layer.attention.fc2.bias
        powers = torch.exp(logits / layer.temperature)
        return (powers / powers.sum())[:, None].expand(-1, layer.out_channels)
    assert isinstance(layer, DyNetConv2d)
    powers = torch.exp(layer.coefficient_fn.weight @ pooled + layer.coefficient_fn.bias)
    powers = powers.view(layer.num_experts, layer.out_channels)
    return powers / powers.sum(0)


def mixture(layer: ConvSlot, x: Tensor, conv: nn.Conv2d) -> Tensor:
    """One sample, one expert, one output channel after the other; conv has the layer's geometry."""
    rows = []
    for sample in x:
        pooled = sample.flatten(1).sum(1) / sample[0].numel()
        if isinstance(layer, DynamicConv2d):
            hidden = (layer.hidden.weight @ pooled + layer.hidden.bias).clamp(min=0)
            kernel = (layer.generate.weight @ hidden + layer.generate.bias).view(conv.weight.shape)
            bias = None if layer.bias is None else layer.bias[0]
        else:
            share, experts = shares(layer, pooled), layer.get_parameter("weight")
            kernel, bias = torch.zeros_like(conv.weight), layer.bias
            for e in range(len(experts)):
                for o in range(layer.out_channels):
                    kernel[o] += share[e, o] * experts[e, o]
            if bias is not None and bias.dim() == 2:
                bias = sum(share[e] * bias[e] for e in range(len(experts)))
        with torch.no_grad():
            conv.weight.copy_(kernel)
            if conv.bias is not None:
                conv.bias.copy_(bias)
            rows.append(conv(sample[None]))
    return torch.cat(rows)
