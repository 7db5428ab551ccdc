"""Small maps of scores to masks of a picture's size, computed only where the threshold may lie.

A bilinear value lies between its neighbours. Where a tile's neighbours are all below the threshold
or all above it, so is the tile; only the others, along the outlines, are interpolated.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from condseg.ops.masks import aligned_upsample
from condseg.structures import Size

TILE = 64  # pixels, each way
INSTANCES, TILES = 4, 64  # at a time


def paste_plainly(
    logits: Float[Tensor, "d h w"], stride: int, size: Size, original: Size, threshold: float
) -> Bool[Tensor, "d h2 w2"]:
    """The published form: sigmoid, up-sampled, cut to the picture, resized, thresholded.

    Args:
        logits: one map an instance, a cell every ``stride`` pixels of the network's input.
        stride: see above.
        size: (height, width) of the picture in the network's input.
        original: (height, width) of the masks.
        threshold: pixels of the mask are those whose score is above it.
    """
    if len(logits) == 0:
        return logits.new_zeros(0, *original, dtype=torch.bool)
    scores = aligned_upsample(logits.sigmoid(), stride)[None, :, : size[0], : size[1]]
    scores = F.interpolate(scores, original, mode="bilinear", align_corners=False)
    return scores[0] > threshold


def paste(
    logits: Float[Tensor, "d h w"], stride: int, size: Size, original: Size, threshold: float
) -> Bool[Tensor, "d h2 w2"]:
    """The same masks in less time, and memory that, beside the masks, does not grow with D.

    Equal to the pixel, but where a score is the threshold to within float32's rounding.
    """
    rows = _bands(logits.shape[1], stride, size[0], original[0], logits.device)
    columns = _bands(logits.shape[2], stride, size[1], original[1], logits.device)
    masks = torch.empty(len(logits), *original, dtype=torch.bool, device=logits.device)
    for start in range(0, len(logits), INSTANCES):
        whole = _paste(logits[start : start + INSTANCES], rows, columns, threshold)
        masks[start : start + INSTANCES] = whole[:, : original[0], : original[1]]
    return masks


class _Bands(NamedTuple):
    """An axis in tiles: the cells that each one sees (T, K), and their weights (T, TILE, K)."""

    cells: Tensor
    weights: Tensor


def _bands(cells: int, stride: int, size: int, original: int, device: torch.device) -> _Bands:
    """Both interpolations of an axis as one linear map, cut into tiles of the result."""
    # In float32, as F.interpolate has it: at the far end its rounding shows.
    position = (torch.arange(original, dtype=torch.float32) + 0.5) * (size / original) - 0.5
    position = position.clamp(0, size - 1).double()
    lower = position.floor()
    matrix = torch.zeros(original, cells, dtype=torch.float64)
    for pixel, share in ((lower, 1 - position + lower), (lower + 1, position - lower)):
        place = ((pixel.clamp(max=size - 1) - stride // 2) / stride).clamp(0, cells - 1)
        cell = place.floor()
        for at, part in ((cell, 1 - place + cell), (cell + 1, place - cell)):
            at = at.clamp(max=cells - 1).long()
            matrix.scatter_add_(1, at[:, None], (share * part)[:, None])
    tiles = F.pad(matrix, (0, 0, 0, -original % TILE)).view(-1, TILE, cells)
    seen = (tiles > 0).any(1).int()
    first, last = seen.argmax(1), cells - 1 - seen.flip(1).argmax(1)
    reach = int((last - first).max()) + 1
    first = first.clamp(max=cells - reach)
    index = first[:, None] + torch.arange(reach)
    weights = tiles.gather(2, index[:, None].expand(-1, TILE, -1))
    return _Bands(index.to(device), weights.float().to(device))


def _paste(logits: Tensor, rows: _Bands, columns: _Bands, threshold: float) -> Tensor:
    """Masks of a few instances, in whole tiles."""
    count, down, across = len(logits), len(rows.cells), len(columns.cells)
    low, high = _extremes(logits, rows.cells, columns.cells)
    inside = low.sigmoid() > threshold
    masks = inside[:, :, None, :, None].expand(-1, -1, TILE, -1, TILE).contiguous()
    outline = (~inside & (high.sigmoid() > threshold)).nonzero()
    for tiles in outline.split(TILES) if len(outline) else ():
        instance, i, j = tiles.unbind(1)
        cells = (instance[:, None, None], rows.cells[i][:, :, None], columns.cells[j][:, None])
        scores = rows.weights[i] @ logits[cells].sigmoid() @ columns.weights[j].transpose(1, 2)
        masks[instance, i, :, j] = scores > threshold
    return masks.view(count, down * TILE, across * TILE)


def _extremes(logits: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest value that each tile sees: (D, tiles down, tiles across)."""
    low = high = logits
    for dim, cells in ((1, rows), (2, columns)):
        low = low.index_select(dim, cells.flatten()).unflatten(dim, cells.shape).amin(dim + 1)
        high = high.index_select(dim, cells.flatten()).unflatten(dim, cells.shape).amax(dim + 1)
    return low, high
