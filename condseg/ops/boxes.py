"""Boxes as the four distances from a location."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def boxes_from_ltrb(
    points: Float[Tensor, "n 2"], ltrb: Float[Tensor, "n 4"]
) -> Float[Tensor, "n 4"]:
    """xyxy boxes from points (x, y) and distances to left, top, right, bottom (same unit)."""
    return torch.cat((points - ltrb[:, :2], points + ltrb[:, 2:]), dim=1)


def centerness(ltrb: Float[Tensor, "n 4"]) -> Float[Tensor, " n"]:
    """sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)).

    Source:
        FCOS (ICCV 2019), equation 3.
    """
    left_right, top_bottom = ltrb[:, 0::2], ltrb[:, 1::2]
    ratio = left_right.amin(1) / left_right.amax(1) * (top_bottom.amin(1) / top_bottom.amax(1))
    return ratio.sqrt()


def ltrb_overlap(
    predicted: Float[Tensor, "n 4"], target: Float[Tensor, "n 4"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """IoU and GIoU of boxes that share their location.

    iou = (I + 1) / (U + 1), giou = iou - (hull - U) / hull, with intersection I, union U and the
    enclosing box's area hull in the distances' own unit (strides). The ones keep an empty
    prediction finite, as in the official implementation. The distances l, t, r, b are >= 0.
    """
    inner, outer = torch.minimum(predicted, target), torch.maximum(predicted, target)

    def area(d: Tensor) -> Tensor:
        return (d[:, 0] + d[:, 2]) * (d[:, 1] + d[:, 3])

    intersection, hull = area(inner), area(outer)
    union = area(predicted) + area(target) - intersection
    iou = (intersection + 1) / (union + 1)
    return iou, iou - (hull - union) / hull
