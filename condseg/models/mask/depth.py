"""Features of depth maps that do not depend on the depth's unit."""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation


def normalized_depth(depth: Float[Tensor, "b h w"]) -> Float[Tensor, "b 2 h w"]:
    r"""Inverse depth, normalized per image, and a mask of where it was measured.

    .. math:: x = \frac{q - m}{\operatorname{mean} |q - m|}, \quad
        m = \operatorname{median} q, \quad q = 1 / \text{depth}

    over the measured pixels, so that neither the unit nor the padding matters.

    Args:
        depth: distances in any unit, 0 where nothing was measured.

    Returns:
        x, 0 where nothing was measured; and 1 where depth was measured, else 0.

    Source:
        Ranftl et al., "Towards Robust Monocular Depth Estimation" (TPAMI 2022), section 5: how
        depths of different cameras are made comparable.
    """
    measured = depth > 0
    inverse = torch.where(measured, 1 / depth, torch.nan).flatten(1)
    away = inverse - _nanmedian(inverse)
    spread = away.abs().nanmean(1, keepdim=True)
    # A constant depth has no spread: x is 0 there.
    x = away / spread.where(spread > 0, 1)
    return torch.stack((x.nan_to_num(0).view_as(depth), measured.to(depth.dtype)), 1)


def _nanmedian(values: Float[Tensor, "b n"]) -> Float[Tensor, "b 1"]:
    """Median of the numbers of each row, the lower one of two; NaN without any."""
    if not torch.compiler.is_exporting():
        median: Tensor = values.nanmedian(1, keepdim=True).values
        return median
    missing = values.isnan()  # other runtimes have no nanmedian
    ranked = values.where(~missing, torch.inf).sort(1).values
    count = (~missing).sum(1, keepdim=True)  # (B, 1)
    lower = ranked.gather(1, (count - 1).clamp(min=0) // 2)
    return lower.where(count > 0, torch.nan)


class DepthEncoder(nn.Module):
    """Three 3x3 convolutions of stride 2 and one of stride 1 on the normalized depth.

    Args:
        channels: of the features; the first two convolutions have a quarter and a half of them.

    Shape:
        (B, H, W) distances in any unit, 0 where nothing was measured -> (B, channels, H/8, W/8).

    Raises:
        ValueError: ``channels`` is below 1.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"depth_channels is {channels}; 1 or more is allowed")
        widths = (2, max(channels // 4, 1), max(channels // 2, 1), channels)
        strided = [Conv2dNormActivation(a, b, 3, stride=2) for a, b in pairwise(widths)]
        self.layers = nn.Sequential(*strided, Conv2dNormActivation(channels, channels, 3))

    def forward(self, depth: Float[Tensor, "b h w"]) -> Float[Tensor, "b c h8 w8"]:
        features: Tensor = self.layers(normalized_depth(depth))
        return features
