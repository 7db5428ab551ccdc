"""BoxInst's two losses: masks learned from boxes only.

Source:
    BoxInst (CVPR 2021), equations 2 to 6 and the official implementation's details.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from condseg.ops.losses import dice_loss


def srgb_to_lab(rgb: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
    """CIE L*a*b* (D65, 2 degrees) of sRGB values 0..1.

    Source:
        IEC 61966-2-1 and CIE 15.
    """
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    red, green, blue = linear.unbind(-1)
    xyz = torch.stack(
        (
            (0.412453 * red + 0.357580 * green + 0.180423 * blue) / 0.95047,
            0.212671 * red + 0.715160 * green + 0.072169 * blue,
            (0.019334 * red + 0.119193 * green + 0.950227 * blue) / 1.08883,
        ),
        dim=-1,
    )
    f = torch.where(xyz > 0.008856, xyz.clamp(min=1e-9) ** (1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = f.unbind(-1)
    return torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), dim=-1)


def neighbours(x: Float[Tensor, "n c h w"], size: int, dilation: int) -> Float[Tensor, "n c k h w"]:
    """The size^2 - 1 neighbours of each pixel (zeros outside), row-major without the centre."""
    h, w = x.shape[-2:]
    reach = size // 2 * dilation
    x = F.pad(x, (reach,) * 4)
    places = [(reach + dy, reach + dx) for dy, dx in _offsets(size, dilation)]
    return torch.stack([x[..., i : i + h, j : j + w] for i, j in places], dim=2)


def _offsets(size: int, dilation: int) -> list[tuple[int, int]]:
    """(rows, columns) from a pixel to its neighbours; the k-th and the (-1 - k)-th are opposite."""
    steps = range(-(size // 2) * dilation, size // 2 * dilation + 1, dilation)
    return [(dy, dx) for dy in steps for dx in steps if (dy, dx) != (0, 0)]


def lab_at_stride(images: UInt8[Tensor, "b 3 h w"], stride: int) -> Float[Tensor, "b 3 h2 w2"]:
    """L*a*b* of RGB images averaged over stride x stride cells and rounded down."""
    mean = F.avg_pool2d(images.float(), stride).floor()
    return srgb_to_lab(mean.permute(0, 2, 3, 1) / 255).permute(0, 3, 1, 2)


def color_similarity(
    lab: Float[Tensor, "b 3 h w"], valid: Bool[Tensor, "b h w"], size: int = 3, dilation: int = 2
) -> Float[Tensor, "b k h w"]:
    """exp(-|lab_i - lab_j| / 2) for each neighbour j of each pixel i, zero where j is not valid.

    Valid are the pixels of the image, without padding and removed rows.
    """
    difference = lab[:, :, None] - neighbours(lab, size, dilation)
    similarity = torch.exp(-0.5 * difference.norm(dim=1))
    return similarity * neighbours(valid[:, None].to(lab.dtype), size, dilation)[:, 0]


def projection_loss(
    scores: Float[Tensor, "n h w"], box_masks: Bool[Tensor, "n h w"]
) -> Float[Tensor, " n"]:
    """Dice of the maxima over rows and over columns, mask against filled box, per instance."""
    target = box_masks.to(scores.dtype)
    return dice_loss(scores.amax(1), target.amax(1)) + dice_loss(scores.amax(2), target.amax(2))


def pairwise_loss(
    logits: Float[Tensor, "n h w"],
    weights: Float[Tensor, "n k h w"] | Bool[Tensor, "n k h w"],
    size: int = 3,
    dilation: int = 2,
) -> Float[Tensor, ""]:
    """-log P(a pixel and its neighbour have the same label), summed over weighted pairs.

    -log(p q + (1 - p)(1 - q)) = s(a) + s(b) - s(a + b), with s(x) = log(1 + e^x) and p, q the
    sigmoids of the pixels' logits a, b. It is symmetric and computed once per pair. The weights are
    those of each pixel's K neighbours; those outside the map are ignored.
    """
    h, w = logits.shape[-2:]
    offsets = _offsets(size, dilation)
    soft = F.softplus(logits)
    total = soft.sum() * 0
    for k in range(len(offsets) // 2, len(offsets)):
        dy, dx = offsets[k]
        here = (..., slice(0, max(h - dy, 0)), slice(max(-dx, 0), max(w - max(dx, 0), 0)))
        there = (..., slice(dy, h), slice(max(dx, 0), max(w + min(dx, 0), 0)))
        energy = soft[here] + soft[there] - F.softplus(logits[here] + logits[there])
        weight = weights[:, k][here].to(energy.dtype) + weights[:, -1 - k][there]
        total = total + (energy * weight).sum()
    return total


def box_masks(
    boxes: Float[Tensor, "n 4"], size: tuple[int, int], stride: int = 1
) -> Bool[Tensor, "n h w"]:
    """Filled boxes (xyxy) on a canvas: rows int(y1) to int(y2 + 1) - 1, columns likewise.

    Only pixels at stride // 2, stride // 2 + stride, ... are computed.
    """
    x1, y1, x2, y2 = boxes[..., None].unbind(1)
    y = torch.arange(stride // 2, size[0], stride, device=boxes.device)
    x = torch.arange(stride // 2, size[1], stride, device=boxes.device)
    rows = (y >= y1.long()) & (y < (y2 + 1).long())
    columns = (x >= x1.long()) & (x < (x2 + 1).long())
    return rows[:, :, None] & columns[:, None]
