"""Depth maps -> features, of which the shape of the scene counts, not the unit."""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation


def normalised_depth(depth: Float[Tensor, "b h w"]) -> Float[Tensor, "b 2 h w"]:
    r"""Inverse depth in each picture's own measure, and where there is any.

    .. math:: x = \frac{q - m}{\operatorname{mean} |q - m|}, \quad
        m = \operatorname{median} q, \quad q = 1 / \text{depth}

    over the pixels that were measured. The unit drops out, and so does the padding. What a stereo
    or structured-light camera measures is q, equally well near and far.

    Args:
        depth: distances in any unit, 0 where nothing was measured.

    Returns:
        x, 0 where nothing was measured; and 1 where something was, else 0.

    Source:
        Ranftl et al., "Towards Robust Monocular Depth Estimation" (TPAMI 2022), section 5: how
        depths of different cameras are made comparable.
    """
    measured = depth > 0
    inverse = torch.where(measured, 1 / depth, torch.nan).flatten(1)
    away = inverse - inverse.nanmedian(1, keepdim=True).values
    spread = away.abs().nanmean(1, keepdim=True)
    # A plane that the camera faces has no spread; it is flat, not undefined.
    x = away / spread.where(spread > 0, 1)
    return torch.stack((x.nan_to_num(0).view_as(depth), measured.to(depth.dtype)), 1)


class DepthEncoder(nn.Module):
    """A light network on the normalised depth: three strided 3x3 convolutions, and one more.

    Args:
        channels: of the features; those before have a quarter and a half of them.

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
        features: Tensor = self.layers(normalised_depth(depth))
        return features
