"""Losses without parameters. Focal losses are sums; the others return one value per element."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from condseg.ops.boxes import ltrb_overlap

BoxLoss = Literal["giou", "linear_iou", "iou"]


def focal_loss(
    logits: Float[Tensor, "*n k"],
    labels: Int64[Tensor, "*n"],
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Float[Tensor, ""]:
    """Sum of the sigmoid focal loss against one-hot labels; label K is background (all zeros).

    FL(p) = -alpha_t (1 - p_t)^gamma log(p_t), alpha_t = alpha for positives, 1 - alpha for others.

    Source:
        RetinaNet (ICCV 2017), equation 5.
    """
    classes = torch.arange(logits.shape[-1], device=logits.device)
    target = (labels[..., None] == classes).to(logits.dtype)
    return sigmoid_focal_loss(logits, target, alpha, gamma, "sum")  # type: ignore[no-any-return]


def quality_focal_loss(
    logits: Float[Tensor, "*n k"],
    labels: Int64[Tensor, "*n"],
    quality: Float[Tensor, "*n"],
    beta: float = 2.0,
) -> Float[Tensor, ""]:
    """Sum of the quality focal loss: the target of the label's class is the box's quality.

    QFL(p) = |y - p|^beta BCE(p, y), with y the quality (0..1) for the label's class and 0 for all
    others; label K is background.

    Source:
        Generalized Focal Loss (NeurIPS 2020), equation 3.
    """
    classes = torch.arange(logits.shape[-1], device=logits.device)
    target = (labels[..., None] == classes) * quality[..., None]
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return ((target - logits.sigmoid()).abs() ** beta * cross_entropy).sum()


def box_loss(
    predicted: Float[Tensor, "n 4"], target: Float[Tensor, "n 4"], kind: BoxLoss = "giou"
) -> Float[Tensor, " n"]:
    """1 - giou, 1 - iou or -log iou of distances l, t, r, b (see :func:`ltrb_overlap`)."""
    iou, giou = ltrb_overlap(predicted, target)
    if kind == "giou":
        return 1 - giou
    return 1 - iou if kind == "linear_iou" else -iou.log()


def giou_loss(
    predicted: Float[Tensor, "n 4"], target: Float[Tensor, "n 4"], eps: float = 1e-7
) -> Float[Tensor, " n"]:
    """1 - GIoU of xyxy boxes, as ``torchvision.ops.generalized_box_iou_loss``.

    That selects the boxes that overlap, for which a GPU must be waited for; here others have an
    intersection of 0.
    """

    def area(corners: Tensor, ends: Tensor) -> Tensor:
        return (ends - corners).clamp(min=0).prod(dim=1)

    (first, last), (other_first, other_last) = (b.split(2, dim=1) for b in (predicted, target))
    intersection = area(torch.maximum(first, other_first), torch.minimum(last, other_last))
    hull = area(torch.minimum(first, other_first), torch.maximum(last, other_last))
    union = area(first, last) + area(other_first, other_last) - intersection
    return 1 - intersection / (union + eps) + (hull - union) / (hull + eps)


def dice_loss(
    scores: Float[Tensor, "n *s"], target: Float[Tensor, "n *s"] | Bool[Tensor, "n *s"]
) -> Float[Tensor, " n"]:
    """1 - 2 sum(p t) / (sum p^2 + sum t^2 + 1e-5), p after the sigmoid, t 0 or 1, per instance.

    Source:
        V-Net (3DV 2016), as in CondInst (ECCV 2020), equation 5.
    """
    p, t = scores.flatten(1), target.flatten(1).to(scores.dtype)
    return 1 - 2 * (p * t).sum(1) / ((p * p).sum(1) + (t * t).sum(1) + 1e-5)
