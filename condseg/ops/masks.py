"""Masks: up-sampling, centres, and the sampling that targets are made with."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor


def aligned_upsample(x: Float[Tensor, "*b h w"], factor: int) -> Float[Tensor, "*b h2 w2"]:
    """Bilinear up-sampling that keeps every input pixel's value at ``factor`` times its place.

    out[f i + f // 2] = x[i]; between two pixels values are linear, outside they repeat. For f = 2:
    out[0] = x[0], out[2 i + 1] = x[i], out[2 i + 2] = (x[i] + x[i + 1]) / 2.

    Args:
        x: (..., H, W).
        factor: whole number, at least 1.

    Shape:
        (..., H, W) -> (..., factor H, factor W).

    Source:
        CondInst (ECCV 2020), the up-sampling of the official implementation.
    """
    if factor == 1:
        return x
    h, w = x.shape[-2:]
    lead = x.shape[:-2]
    maps = F.pad(x.reshape(math.prod(lead), 1, h, w), (0, 1, 0, 1), mode="replicate")
    maps = F.interpolate(
        maps, size=(factor * h + 1, factor * w + 1), mode="bilinear", align_corners=True
    )
    before = factor // 2
    maps = F.pad(maps, (before, 0, before, 0), mode="replicate")
    return maps[..., : factor * h, : factor * w].reshape(*lead, factor * h, factor * w)


def mask_centers(masks: Bool[Tensor, "n h w"]) -> Float[Tensor, "n 2"]:
    """Mean pixel index (x, y) of each mask; (0, 0) for an empty one.

    Source:
        CondInst's training takes centre sampling around it (official implementation).
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
