"""Low-resolution mask logits to masks of the image's size, interpolated only along the outlines.

A bilinear value is between its neighbours. A tile whose neighbours are all below the threshold, or
all above it, is so too; only the other tiles, along the outlines, are interpolated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from condseg.structures import Size

MaskInterpolation = Literal["scores", "logits"]
"""What is interpolated between the cells of a mask: CondInst's scores, whose cells keep their
values at stride // 2 (:func:`condseg.ops.masks.aligned_upsample`), or RTMDet's logits, whose cells
have theirs at their centers, as in ``F.interpolate``."""
TILE = 64  # pixels, height and width
INSTANCES, TILES = 4, 64  # at a time


def paste(
    logits: Float[Tensor, "d h w"],
    stride: int,
    size: Size,
    original: Size,
    threshold: float,
    interpolation: MaskInterpolation = "scores",
) -> Bool[Tensor, "d h2 w2"]:
    """Sigmoid, up-sampling by the stride, cropping to the image, resizing, thresholding.

    Equal to interpolating whole maps, except where a score equals the threshold to within float32's
    rounding; memory besides the masks does not grow with D.

    Args:
        logits: one map per instance, a cell per ``stride`` pixels of the network's input.
        stride: see above.
        size, original: (height, width) of the image in the network's input, and of the masks.
        threshold: the mask is where the score is above it.
        interpolation: see above; of logits, the sigmoid is last.
    """
    of_scores = interpolation == "scores"
    origin = stride // 2 if of_scores else (stride - 1) / 2
    rows = _bands(logits.shape[1], stride, origin, size[0], original[0], logits.device)
    columns = _bands(logits.shape[2], stride, origin, size[1], original[1], logits.device)
    values = torch.sigmoid if of_scores else torch.Tensor.detach
    limit = threshold if of_scores else _logit(threshold)
    masks = torch.empty(len(logits), *original, dtype=torch.bool, device=logits.device)
    for start in range(0, len(logits), INSTANCES):
        whole = _paste(logits[start : start + INSTANCES], rows, columns, values, limit)
        masks[start : start + INSTANCES] = whole[:, : original[0], : original[1]]
    return masks


def _logit(score: float) -> float:
    return math.log(score / (1 - score)) if 0 < score < 1 else math.inf * (score - 0.5)


class _Bands(NamedTuple):
    """An axis in T tiles: the K cells that each tile reads (T, K), their weights (T, TILE, K)."""

    cells: Tensor
    weights: Tensor


def _bands(
    cells: int, stride: int, origin: int | float, size: int, original: int, device: torch.device
) -> _Bands:
    """Both interpolations along an axis as one linear map, cut into tiles of the output.

    Output pixels interpolate between two pixels of the network's input (resizing), and these
    between two cells (up-sampling by the stride), of which the first is at the origin.
    """
    # In float32 like F.interpolate, whose rounding is visible at the far end.
    position = (torch.arange(original, dtype=torch.float32) + 0.5) * (size / original) - 0.5
    position = position.clamp(0, size - 1).double()  # (original,), in pixels of the input
    lower = position.floor()
    matrix = torch.zeros(original, cells, dtype=torch.float64)
    for pixel, weight in ((lower, 1 - position + lower), (lower + 1, position - lower)):
        place = ((pixel.clamp(max=size - 1) - origin) / stride).clamp(0, cells - 1)
        cell = place.floor()  # (original,)
        for at, part in ((cell, 1 - place + cell), (cell + 1, place - cell)):
            at = at.clamp(max=cells - 1).long()
            matrix.scatter_add_(1, at[:, None], (weight * part)[:, None])
    tiles = F.pad(matrix, (0, 0, 0, -original % TILE)).view(-1, TILE, cells)  # (T, TILE, cells)
    used = (tiles > 0).any(1).int()  # (T, cells)
    first, last = used.argmax(1), cells - 1 - used.flip(1).argmax(1)  # (T,)
    count = int((last - first).max()) + 1  # K
    first = first.clamp(max=cells - count)
    index = first[:, None] + torch.arange(count)  # (T, K)
    weights = tiles.gather(2, index[:, None].expand(-1, TILE, -1))  # (T, TILE, K)
    return _Bands(index.to(device), weights.float().to(device))


def _paste(
    logits: Tensor,
    rows: _Bands,
    columns: _Bands,
    values: Callable[[Tensor], Tensor],
    threshold: float,
) -> Tensor:
    """Masks of a few instances, in whole tiles."""
    count, down, across = len(logits), len(rows.cells), len(columns.cells)
    low, high = _extremes(logits, rows.cells, columns.cells)  # (D, T_down, T_across)
    inside = values(low) > threshold
    masks = inside[:, :, None, :, None].expand(-1, -1, TILE, -1, TILE).contiguous()
    outline = (~inside & (values(high) > threshold)).nonzero()
    for tiles in outline.split(TILES) if len(outline) else ():
        instance, i, j = tiles.unbind(1)
        cells = (instance[:, None, None], rows.cells[i][:, :, None], columns.cells[j][:, None])
        # (N, TILE, K) (N, K, K') (N, K', TILE) -> (N, TILE, TILE) of N tiles
        pixels = rows.weights[i] @ values(logits[cells]) @ columns.weights[j].transpose(1, 2)
        masks[instance, i, :, j] = pixels > threshold
    return masks.view(count, down * TILE, across * TILE)


def _extremes(logits: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Minimum and maximum that each tile reads: (D, T_down, T_across)."""
    low = high = logits
    for dim, cells in ((1, rows), (2, columns)):
        low = low.index_select(dim, cells.flatten()).unflatten(dim, cells.shape).amin(dim + 1)
        high = high.index_select(dim, cells.flatten()).unflatten(dim, cells.shape).amax(dim + 1)
    return low, high
