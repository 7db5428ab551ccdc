"""BoxInst's two losses: masks learned from boxes alone.

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
    matrix = rgb.new_tensor(
        [
            [0.412453, 0.357580, 0.180423],
            [0.212671, 0.715160, 0.072169],
            [0.019334, 0.119193, 0.950227],
        ]
    )
    xyz = linear @ matrix.T / rgb.new_tensor([0.95047, 1.0, 1.08883])
    f = torch.where(xyz > 0.008856, xyz.clamp(min=1e-9) ** (1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = f.unbind(-1)
    return torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), dim=-1)


def neighbours(x: Float[Tensor, "n c h w"], size: int, dilation: int) -> Float[Tensor, "n c k h w"]:
    """The size^2 - 1 neighbours of each pixel (zeros outside), row-major without the centre."""
    n, c, h, w = x.shape
    padding = (size - 1) // 2 * dilation
    windows = F.unfold(x, size, dilation=dilation, padding=padding).view(n, c, size**2, h, w)
    centre = size**2 // 2
    return torch.cat((windows[:, :, :centre], windows[:, :, centre + 1 :]), dim=2)


def lab_at_stride(image: UInt8[Tensor, "3 h w"], stride: int) -> Float[Tensor, "3 h2 w2"]:
    """L*a*b* of the RGB picture averaged over stride x stride cells and cut to whole values."""
    mean = F.avg_pool2d(image[None].float(), stride)[0].floor()
    return srgb_to_lab(mean.permute(1, 2, 0) / 255).permute(2, 0, 1)


def color_similarity(
    lab: Float[Tensor, "3 h w"], valid: Bool[Tensor, "h w"], size: int = 3, dilation: int = 2
) -> Float[Tensor, "k h w"]:
    """exp(-|lab_i - lab_j| / 2) for each neighbour j of each pixel i, zero where j is not valid.

    Args:
        lab: (3, H, W).
        valid: (H, W) pixels of the picture, without padding and cut-off rows.
        size: of the window.
        dilation: of the window.
    """
    difference = lab[None, :, None] - neighbours(lab[None], size, dilation)
    similarity = torch.exp(-0.5 * difference.norm(dim=1)[0])
    return similarity * neighbours(valid[None, None].to(lab.dtype), size, dilation)[0, 0]


def projection_loss(
    scores: Float[Tensor, "n h w"], box_masks: Bool[Tensor, "n h w"]
) -> Float[Tensor, " n"]:
    """Dice of the maxima over rows and over columns, mask against filled box; one an instance."""
    target = box_masks.to(scores.dtype)
    return dice_loss(scores.amax(1), target.amax(1)) + dice_loss(scores.amax(2), target.amax(2))


def pairwise_energy(
    logits: Float[Tensor, "n h w"], size: int = 3, dilation: int = 2
) -> Float[Tensor, "n k h w"]:
    """-log P(pixel i and its neighbour j have the same label), for each neighbour.

    log(p_i p_j + (1 - p_i)(1 - p_j)) from log-probabilities, which are zero outside the map.
    """
    inside, outside = F.logsigmoid(logits)[:, None], F.logsigmoid(-logits)[:, None]
    both_in = inside + neighbours(inside, size, dilation)[:, 0]
    both_out = outside + neighbours(outside, size, dilation)[:, 0]
    return -torch.logaddexp(both_in, both_out)


def pairwise_loss(
    energy: Float[Tensor, "n k h w"],
    similarity: Float[Tensor, "n k h w"],
    box_masks: Bool[Tensor, "n h w"],
    threshold: float = 0.3,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Sum of the energies of like-coloured pairs inside the boxes, and the number of pairs."""
    weight = (similarity >= threshold) & box_masks[:, None]
    return (energy * weight).sum(), weight.sum().to(energy.dtype)


def box_masks(boxes: Float[Tensor, "n 4"], size: tuple[int, int]) -> Bool[Tensor, "n h w"]:
    """Filled boxes on a canvas (H, W): rows int(y1) to int(y2 + 1) - 1, columns likewise."""
    x1, y1, x2, y2 = boxes[..., None].unbind(1)
    y = torch.arange(size[0], device=boxes.device)
    x = torch.arange(size[1], device=boxes.device)
    rows = (y >= y1.long()) & (y < (y2 + 1).long())
    columns = (x >= x1.long()) & (x < (x2 + 1).long())
    return rows[:, :, None] & columns[:, None]
