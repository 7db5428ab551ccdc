"""Low-resolution mask logits to masks of the image's size, interpolated only along the outlines.

A bilinear value is between its neighbours. A tile whose neighbours are all below the threshold, or
all above it, is so too; only the other tiles, along the outlines, are interpolated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from condseg.ops.device import CHUNK_BYTES, is_asynchronous, to_device
from condseg.structures import Size

MaskInterpolation = Literal["scores", "logits"]
"""What is interpolated between the cells of a mask: CondInst's scores, whose cells keep their
values at stride // 2 (:func:`condseg.ops.masks.aligned_upsample`), or RTMDet's logits, whose cells
have theirs at their centers, as in ``F.interpolate``."""
TILE = 64  # pixels, height and width
INSTANCES, TILES = 4, 64  # at a time on the CPU


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
    rounding.

    Args:
        logits: one map per instance, a cell per ``stride`` pixels of the network's input.
        stride: see above.
        size, original: (height, width) of the image in the network's input, and of the masks.
        threshold: the mask is where the score is above it.
        interpolation: see above; of logits, the sigmoid is last.
    """
    image = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    return paste_batch(logits, image, stride, [size], [original], threshold, interpolation)


def paste_batch(
    logits: Float[Tensor, "d h w"],
    image: Int64[Tensor, " d"],
    stride: int,
    sizes: Sequence[Size],
    originals: Sequence[Size],
    threshold: float,
    interpolation: MaskInterpolation = "scores",
) -> Bool[Tensor, "d h2 w2"]:
    """:func:`paste` of the instances of several images; ``image`` is the index of each one's.

    Masks have the largest original height and width. An image's are in the top left corner; what
    is outside of it is undefined.
    """
    of_scores = interpolation == "scores"
    origin = stride // 2 if of_scores else (stride - 1) / 2
    rows, columns = _axes(logits, stride, origin, sizes, originals)
    values = torch.sigmoid if of_scores else torch.Tensor.detach
    limit = threshold if of_scores else _logit(threshold)

    def part(some: slice) -> Tensor:
        return _paste(logits[some], image[some], rows, columns, values, limit)

    height, width = (max(o[k] for o in originals) for k in (0, 1))
    if is_asynchronous(logits):
        return part(slice(None))[:, :height, :width]
    masks = torch.empty(len(logits), height, width, dtype=torch.bool)
    for start in range(0, len(logits), INSTANCES):
        some = slice(start, start + INSTANCES)
        masks[some] = part(some)[:, :height, :width]
    return masks


def _logit(score: float) -> float:
    return math.log(score / (1 - score)) if 0 < score < 1 else math.inf * (score - 0.5)


class _Axis(NamedTuple):
    """An axis of each image in T tiles: the K cells that a tile reads, and their weights.

    Attributes:
        cells: (B, T, K).
        weights: (B, T, TILE, K).
    """

    cells: Tensor
    weights: Tensor


def _axes(
    logits: Tensor,
    stride: int,
    origin: int | float,
    sizes: Sequence[Size],
    originals: Sequence[Size],
) -> tuple[_Axis, _Axis]:
    """Both interpolations along each axis as one linear map, cut into tiles of the output.

    Output pixels interpolate between two pixels of the network's input (resizing), and these
    between two cells (up-sampling by the stride), of which the first is at the origin. Both axes
    are computed together.
    """
    device, number = logits.device, len(sizes)
    pairs = [(s[k], o[k], logits.shape[1 + k]) for k in (0, 1) for s, o in zip(sizes, originals)]  # noqa: B905
    table = [(size / original, size - 1, cells - 1) for size, original, cells in pairs]
    scale, last, last_cell = to_device(table, logits)[:, None].unbind(2)  # (2 B, 1)
    tiles = [max(-(-o[k] // TILE) for o in originals) for k in (0, 1)]
    count = max(tiles)  # T
    # In float32 like F.interpolate, whose rounding is visible at the far end.
    position = torch.arange(count * TILE, dtype=torch.float32, device=device) + 0.5
    position = torch.minimum((position * scale - 0.5).clamp(min=0), last).double()  # (2 B, T TILE)
    lower = position.floor()
    pixels = torch.stack((lower, torch.minimum(lower + 1, last)), dim=2)
    last_cell = last_cell[..., None]
    place = torch.minimum(((pixels - origin) / stride).clamp(min=0), last_cell)
    cell = place.floor()  # (2 B, T TILE, 2)
    index = torch.stack((cell, torch.minimum(cell + 1, last_cell)), dim=3).long()

    def shares(part: Tensor) -> Tensor:
        return torch.stack((1 - part, part), dim=-1)

    values = shares(position - lower)[..., None] * shares(place - cell)  # (2 B, T TILE, 2, 2)
    index, values = (x.view(2 * number, count, TILE, 4) for x in (index, values))
    first = index[:, :, 0, 0]  # (2 B, T)
    if is_asynchronous(logits):  # at most: the pixels that a tile reads, in cells, and those around
        read = -(-max(int((TILE - 1) * row[0]) + 2 for row in table) // stride) + 2  # K
    else:
        read = int((index.amax((2, 3)) - first).max()) + 1
    weights = values.new_zeros(2 * number, count, TILE, read)
    weights = weights.scatter_add_(3, index - first[:, :, None, None], values).float()
    cells = first[:, :, None] + torch.arange(read, device=device)
    cells = torch.minimum(cells, last_cell.long())  # those beyond have no weight
    rows, columns = (
        _Axis(cells[k * number :][:number, :t], weights[k * number :][:number, :t])
        for k, t in enumerate(tiles)
    )
    return rows, columns


def _paste(
    logits: Tensor,
    image: Tensor,
    rows: _Axis,
    columns: _Axis,
    values: Callable[[Tensor], Tensor],
    threshold: float,
) -> Tensor:
    """Masks of some instances, in whole tiles."""
    down, across = rows.cells.shape[1], columns.cells.shape[1]
    low, high = _extremes(logits, image, rows.cells, columns.cells)  # (D, T_down, T_across)
    inside = values(low) > threshold
    masks = inside[:, :, None, :, None].expand(-1, -1, TILE, -1, TILE).contiguous()
    outline = (~inside & (values(high) > threshold)).nonzero()
    step = TILES if not is_asynchronous(logits) else _tiles_of_a_chunk(rows, columns)
    rows, columns = (_Axis(*(x.flatten(0, 1) for x in axis)) for axis in (rows, columns))
    for tiles in outline.split(step) if len(outline) else ():
        instance, i, j = tiles.unbind(1)
        row, column = image[instance] * down + i, image[instance] * across + j
        cells = (
            instance[:, None, None],
            rows.cells[row][:, :, None],
            columns.cells[column][:, None],
        )
        # (N, TILE, K) (N, K, K') (N, K', TILE) -> (N, TILE, TILE) of N tiles
        pixels = rows.weights[row] @ values(logits[cells]) @ columns.weights[column].mT
        masks[instance, i, :, j] = pixels > threshold
    return masks.view(-1, down * TILE, across * TILE)


def _tiles_of_a_chunk(rows: _Axis, columns: _Axis) -> int:
    """Tiles whose logits, weights and scores fit in a chunk."""
    k, other = rows.cells.shape[-1], columns.cells.shape[-1]
    return max(1, CHUNK_BYTES // (4 * (2 * k * other + TILE * (k + 2 * other) + 2 * TILE**2)))


def _extremes(
    logits: Tensor, image: Tensor, rows: Tensor, columns: Tensor
) -> tuple[Tensor, Tensor]:
    """Minimum and maximum that each tile reads: (D, T_down, T_across)."""
    parts = []
    read = rows.shape[1] * rows.shape[2] * logits.shape[2]
    step = max(1, CHUNK_BYTES // (8 * read)) if is_asynchronous(logits) else INSTANCES
    for part, own in zip(logits.split(step), image.split(step), strict=True):
        low, high = _reduced(part, part, own, rows, 1)
        parts.append(_reduced(low, high, own, columns, 2))
    low, high = (torch.cat(each) for each in zip(*parts, strict=True))
    return low, high


def _reduced(
    low: Tensor, high: Tensor, image: Tensor, cells: Tensor, dim: int
) -> tuple[Tensor, Tensor]:
    """Minimum and maximum over the cells of each tile along an axis, which becomes the tiles'."""
    if len(cells) == 1:  # of one image: one index for all instances
        index, shape = cells.flatten(), cells.shape[1:]  # (T, K)
        low = low.index_select(dim, index).unflatten(dim, shape).amin(dim + 1)
        high = high.index_select(dim, index).unflatten(dim, shape).amax(dim + 1)
        return low, high
    low, high = low.transpose(1, dim), high.transpose(1, dim)
    first = torch.arange(len(low), device=low.device) * low.shape[1]
    index = (first[:, None, None] + cells[image]).flatten()
    of_all = (len(low), *cells.shape[1:], low.shape[2])  # (D, T, K, w)
    low = low.flatten(0, 1).index_select(0, index).view(of_all).amin(2)
    high = high.flatten(0, 1).index_select(0, index).view(of_all).amax(2)
    return low.transpose(1, dim), high.transpose(1, dim)
