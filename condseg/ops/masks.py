"""Masks: up-sampling, centres, and sampling of targets."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor


def aligned_upsample(x: Float[Tensor, "*b h w"], factor: int) -> Float[Tensor, "*b h2 w2"]:
    """Bilinear up-sampling that keeps every input pixel's value at ``factor`` times its position.

    out[f i + f // 2] = x[i], linear between two pixels, constant outside. For f = 2:
    out[0] = x[0], out[2 i + 1] = x[i], out[2 i + 2] = (x[i] + x[i + 1]) / 2.

    Shape:
        (..., H, W) -> (..., factor H, factor W), factor >= 1.

    Source:
        CondInst (ECCV 2020), the up-sampling of the official implementation.
    """
    if factor == 1:
        return x
    *lead, h, w = x.shape
    height, width, before = factor * h, factor * w, factor // 2
    maps = F.pad(x.reshape(math.prod(lead), 1, h, w), (0, 1, 0, 1), mode="replicate")
    maps = F.interpolate(maps, (height + 1, width + 1), mode="bilinear", align_corners=True)
    maps = F.pad(maps, (before, 0, before, 0), mode="replicate")
    return maps[..., :height, :width].reshape(*lead, height, width)


def upsample_into(x: Float[Tensor, "n h w"], factor: int, out: Tensor) -> None:
    """:func:`aligned_upsample` into ``out`` (N, factor H, factor W), a few maps at a time.

    Rows at the positions of input rows are interpolated along the columns first, then the rows
    between them, so that nothing is written twice. Without gradients.
    """
    middle, step = factor // 2, max(1, 2**18 // max(1, out[:1].numel()))
    for start in range(0, len(x), step):
        part = x[start : start + step]
        target = out[start : start + step].unflatten(1, (-1, factor))
        kept = target[:, :, middle]
        columns = kept.unflatten(2, (-1, factor))
        if factor == 2:
            # As real and imaginary part, two neighbours are written together.
            left = _blend(part, factor, 0, 2, torch.empty_like(part))
            torch.complex(left, part, out=torch.view_as_complex(columns))
        else:
            for k in range(factor):
                _blend(part, factor, k, 2, columns[..., k])
        for k in {*range(factor)} - {middle}:
            _blend(kept, factor, k, 1, target[:, :, k])


def _blend(x: Tensor, factor: int, phase: int, dim: int, out: Tensor) -> Tensor:
    """The output value of each pixel at one of the ``factor`` positions along an axis."""
    size, beside = x.shape[dim], phase - factor // 2
    if beside == 0:
        return out.copy_(x)
    edge = 0 if beside < 0 else size - 1
    low, high = x.narrow(dim, 0, size - 1), x.narrow(dim, 1, size - 1)
    near, far, start = (high, low, 1) if beside < 0 else (low, high, 0)
    torch.lerp(near, far, abs(beside) / factor, out=out.narrow(dim, start, size - 1))
    out.select(dim, edge).copy_(x.select(dim, edge))
    return out


def upsample_adjoint(grad: Float[Tensor, "n h2 w2"], factor: int) -> Float[Tensor, "n h w"]:
    """The gradient of :func:`aligned_upsample`: the transposed linear map."""
    for dim in (2, 1):
        parts = grad.unflatten(dim, (-1, factor)).unbind(dim + 1)
        size, middle = parts[0].shape[dim], factor // 2
        total = parts[middle].clone()
        for k in {*range(factor)} - {middle}:
            share = abs(k - middle) / factor
            total.add_(parts[k], alpha=1 - share)
            inner, edge = (0, size - 1) if k > middle else (1, 0)
            total.narrow(dim, 1 - inner, size - 1).add_(
                parts[k].narrow(dim, inner, size - 1), alpha=share
            )
            total.select(dim, edge).add_(parts[k].select(dim, edge), alpha=share)
        grad = total
    return grad


def mask_centers(masks: Bool[Tensor, "n h w"]) -> Float[Tensor, "n 2"]:
    """Mean pixel index (x, y) of each mask; (0, 0) for an empty mask.

    Source:
        Centre of the sampling region in CondInst's training (official implementation).
    """
    columns = masks.sum(dim=1, dtype=torch.float32)
    rows = masks.sum(dim=2, dtype=torch.float32)
    area = columns.sum(dim=1).clamp(min=1e-6)
    x = columns @ torch.arange(masks.shape[2], device=masks.device, dtype=torch.float32)
    y = rows @ torch.arange(masks.shape[1], device=masks.device, dtype=torch.float32)
    return torch.stack((x / area, y / area), dim=1)


def sample_at_stride(masks: Shaped[Tensor, "n h w"], stride: int) -> Shaped[Tensor, "n h2 w2"]:
    """The pixels at rows and columns stride // 2, stride // 2 + stride, ... of each mask."""
    return masks[:, stride // 2 :: stride, stride // 2 :: stride]
