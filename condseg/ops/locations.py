"""The locations of a feature pyramid in pixels of the network's input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from condseg.structures import Locations, Size


def level_locations(
    size: Size, stride: int, device: torch.device | str | None = None, offset: float = 0.5
) -> Float[Tensor, "l 2"]:
    """One point per cell of a map: (x, y) = (j s + floor(s o), i s + floor(s o)), row-major.

    With the default offset o they are the cells' centers, with 0 their corners.

    Source:
        FCOS (ICCV 2019), section 3.1.
    """
    y, x = (torch.arange(n, device=device, dtype=torch.float32) * stride for n in size)
    return torch.cartesian_prod(y, x).flip(1) + int(stride * offset)


def pyramid_locations(
    level_sizes: Sequence[Size],
    strides: Sequence[int],
    device: torch.device | str | None = None,
    sizes_of_interest: Sequence[int] | None = None,
    offset: float = 0.5,
) -> Locations:
    """The locations of all levels, level after level.

    Level l is responsible for objects whose largest distance to a side is between the sizes of
    interest of levels l - 1 and l; the first and the last level have no limit on one side.

    Args:
        level_sizes: (height, width) of each level's map.
        strides: pixels per cell of each level.
        device: of the result.
        sizes_of_interest: in pixels; 8 strides, as published, if not given.
        offset: of :func:`level_locations`.

    Source:
        FCOS (ICCV 2019), section 3.2: 64, 128, 256, 512; CondInst divides the relative coordinates
        by these and, at the last level, by 1024.
    """
    sizes = [8 * stride for stride in strides] if sizes_of_interest is None else sizes_of_interest
    lower, upper = (-1.0, *sizes[:-1]), (*sizes[:-1], 1e8)
    counts = [h * w for h, w in level_sizes]

    def per_location(values: Sequence[int | float], dtype: torch.dtype = torch.float32) -> Tensor:
        parts = zip(counts, values, strict=True)
        return torch.cat([torch.full((n,), v, dtype=dtype, device=device) for n, v in parts])

    levels = zip(level_sizes, strides)  # noqa: B905
    return Locations(
        torch.cat([level_locations(*each, device, offset) for each in levels]),
        per_location(strides),
        per_location(range(len(counts)), torch.int64),
        per_location(sizes),
        torch.stack((per_location(lower), per_location(upper)), dim=1),
    )
