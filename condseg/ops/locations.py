"""Where the locations of the feature pyramid lie in the picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from condseg.structures import Size


def level_locations(
    size: Size, stride: int, device: torch.device | str | None = None
) -> Float[Tensor, "l 2"]:
    """Centres of the cells of one map: (x, y) = (j s + s // 2, i s + s // 2), row-major.

    Args:
        size: (height, width) of the map.
        stride: pixels of the picture a cell.
        device: where the tensor lives.

    Source:
        FCOS (ICCV 2019), section 3.1.
    """
    y = torch.arange(size[0], device=device, dtype=torch.float32) * stride + stride // 2
    x = torch.arange(size[1], device=device, dtype=torch.float32) * stride + stride // 2
    yy, xx = torch.meshgrid(y, x, indexing="ij")
    return torch.stack((xx.reshape(-1), yy.reshape(-1)), dim=1)


def pyramid_locations(
    sizes: Sequence[Size], strides: Sequence[int], device: torch.device | str | None = None
) -> Float[Tensor, "l 2"]:
    """Locations of all levels, one after the other: (L, 2) points (x, y) in pixels."""
    return torch.cat([level_locations(hw, s, device) for hw, s in zip(sizes, strides, strict=True)])


def location_levels(
    sizes: Sequence[Size], device: torch.device | str | None = None
) -> Int64[Tensor, " l"]:
    """Level 0, 1, ... of each of the L locations."""
    counts = torch.tensor([h * w for h, w in sizes], device=device)
    return torch.repeat_interleave(torch.arange(len(sizes), device=device), counts)
