"""Run lengths of masks in COCO's order: column after column, from the top."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Int64
from numpy.typing import NDArray
from torch import Tensor

PIXELS = 2**30
"""In which changes are searched at once; CUDA's nonzero supports fewer than 2^31."""


def changes(masks: Sequence[Bool[Tensor, "_d _h _w"]]) -> Int64[Tensor, " n"]:
    """Where a pixel differs from the one before, in all masks of all images one after the other.

    Pixels are numbered image after image, mask after mask and column after column; before the
    first one is an empty pixel.
    """
    pixels = torch.zeros(
        1 + sum(m.numel() for m in masks), dtype=torch.bool, device=masks[0].device
    )
    end = 1
    for of_image in masks:
        start, end = end, end + of_image.numel()
        pixels[start:end].view(of_image.mT.shape).copy_(of_image.mT)
    different = pixels[1:] != pixels[:-1]
    parts = [
        part.nonzero().squeeze(1) + k * PIXELS for k, part in enumerate(different.split(PIXELS))
    ]
    return torch.cat(parts)


def run_lengths(positions: NDArray[np.int64], areas: Sequence[int]) -> list[NDArray[np.int64]]:
    """The runs of each mask, background first, from :func:`changes`.

    Args:
        positions: of all masks.
        areas: number of pixels of each mask.
    """
    ends = np.cumsum(areas, dtype=np.int64)
    starts = ends - np.asarray(areas, dtype=np.int64)
    first = np.searchsorted(positions, starts, side="right")  # the changes inside of a mask
    last = np.searchsorted(positions, ends, side="left")
    runs = []
    for start, end, i, j in zip(starts, ends, first, last, strict=True):
        lead = [start, start] if i % 2 else [start]  # an odd number of changes: it starts inside
        runs.append(np.diff(np.concatenate((lead, positions[i:j], [end]))))
    return runs
