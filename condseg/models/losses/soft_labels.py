"""RTMDet's loss: locations are assigned by what they predict, and scores learn the IoU."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor
from torchvision.ops import box_iou

from condseg.models.losses.base import DenseLoss
from condseg.ops.boxes import boxes_from_ltrb
from condseg.ops.distributed import mean_over_ranks
from condseg.ops.losses import giou_loss, quality_focal_loss
from condseg.structures import Assignment, HeadPredictions, Locations, Targets


class SoftLabelLoss(DenseLoss):
    """Assigns each object the locations that predict it best, and trains their scores to be IoUs.

    A location that lies strictly inside any box has for object j, with IoU u of its predicted box
    and probabilities p, the cost

        sum_k BCE(p_k, y_k) |y_k - p_k|^2 - iou_weight log(u + 1e-7) + 10^(d - center_radius),

    where y is u for the object's class and 0 elsewhere, d the distance to the box's center in
    strides. Each object is assigned its cheapest locations: as many as the sum of its ``topk``
    largest IoUs, rounded down, but at least one. A location chosen for several objects is assigned
    the one with the lowest cost. The losses are

        (sum QFL + box_weight sum u (1 - GIoU)) / max(sum u, 1).

    Args:
        topk: max number of locations per object.
        center_radius: distance from the center, in strides, that costs 1.
        iou_weight: of the box's part of the cost.
        beta: exponent of the quality focal loss.
        box_weight: of the box loss.
        mask_weight: of the mask losses.

    Source:
        RTMDet (arXiv 2212.07784), section 3.3; details that the paper leaves open and all numbers
        are those of mmdetection's ``rtmdet-ins`` configurations. There the locations are the
        corners of the cells, here their centers as in FCOS.
    """

    def __init__(
        self,
        topk: int = 13,
        center_radius: float = 3.0,
        iou_weight: float = 3.0,
        beta: float = 2.0,
        box_weight: float = 2.0,
        mask_weight: float = 2.0,
    ) -> None:
        super().__init__()
        self.topk, self.center_radius, self.iou_weight = topk, center_radius, iou_weight
        self.beta, self.box_weight, self.mask_weight = beta, box_weight, mask_weight

    def forward(
        self, head: HeadPredictions, locations: Locations, targets: Sequence[Targets]
    ) -> tuple[Assignment, dict[str, Tensor]]:
        logits, ltrb = head.class_logits.float(), head.ltrb.float()
        points, stride = locations.points, locations.stride
        images = []
        inside = _inside(points, targets)
        for i, target in enumerate(targets):
            boxes = boxes_from_ltrb(points, ltrb[i].detach() * stride[:, None])
            predicted = (boxes, logits[i].detach())
            instance, quality = self.assign(points, stride, *predicted, target, inside[i])
            background = target.labels.new_full((1,), logits.shape[2])
            label = torch.cat((target.labels, background))[instance]
            box = torch.cat((target.boxes, points.new_zeros(1, 4)))[instance]  # (L, 4)
            sides = torch.cat((points - box[:, :2], box[:, 2:] - points), 1)
            images.append((instance, label, sides / stride[:, None], quality))
        *assigned, quality = map(torch.stack, zip(*images, strict=True))
        assignment = Assignment.of(*assigned)
        return assignment, self._losses(logits, ltrb, assignment, quality)

    @torch.no_grad()
    def assign(
        self,
        points: Float[Tensor, "l 2"],
        stride: Float[Tensor, " l"],
        boxes: Float[Tensor, "l 4"],
        logits: Float[Tensor, "l k"],
        target: Targets,
        inside: Int64[Tensor, " v"],
    ) -> tuple[Int64[Tensor, " l"], Float[Tensor, " l"]]:
        """The object of each location of one image (-1: none), and the IoU with its box.

        Points and predicted boxes (xyxy) are in pixels; ``inside`` are the locations inside a box.
        """
        instance = torch.full((len(points),), -1, device=points.device)
        quality = torch.zeros_like(stride)
        if len(inside) == 0:
            return instance, quality
        iou = box_iou(boxes[inside], target.boxes).nan_to_num()  # 0 / 0: two boxes without area
        cost = self.cost(points[inside], stride[inside], logits[inside], iou, target)

        k = min(self.topk, len(inside))
        count = iou.topk(k, dim=0).values.sum(dim=0).int().clamp(min=1)
        cheapest = cost.topk(k, dim=0, largest=False).indices  # (k, N)
        within = torch.arange(k, device=count.device)[:, None] < count
        chosen = torch.zeros_like(cost, dtype=torch.bool).scatter(0, cheapest, within)  # (V, N)
        several = chosen.sum(dim=1) > 1
        owner = torch.where(several, cost.argmin(dim=1), chosen.int().argmax(dim=1))
        positive = chosen.any(dim=1)
        instance[inside] = torch.where(positive, owner, -1)
        overlap = iou.gather(1, owner[:, None]).squeeze(1)
        quality[inside] = torch.where(positive, overlap, 0.0)
        return instance, quality

    def cost(
        self,
        points: Float[Tensor, "v 2"],
        stride: Float[Tensor, " v"],
        logits: Float[Tensor, "v k"],
        iou: Float[Tensor, "v n"],
        target: Targets,
    ) -> Float[Tensor, "v n"]:
        """The cost of each location for each object.

        The sum over the classes is split: a class with soft label 0 costs the same for every
        object, so that nothing of size V N K is computed.
        """
        as_zero = F.softplus(logits) * logits.sigmoid() ** 2
        others = as_zero.sum(dim=1, keepdim=True) - as_zero[:, target.labels]
        own = logits[:, target.labels]
        own = F.binary_cross_entropy_with_logits(own, iou, reduction="none") * (
            (iou - own.sigmoid()) ** 2
        )
        center = (target.boxes[:, :2] + target.boxes[:, 2:]) / 2
        distance = (points[:, None] - center).norm(dim=2) / stride[:, None]
        far = torch.exp(math.log(10) * (distance - self.center_radius))
        return own + others - self.iou_weight * (iou + 1e-7).log() + far

    def _losses(
        self, logits: Tensor, ltrb: Tensor, assignment: Assignment, quality: Tensor
    ) -> dict[str, Tensor]:
        positive = assignment.image_index, assignment.location_index
        total = mean_over_ranks(quality.sum()).clamp(min=1)
        origin = ltrb.new_zeros(len(positive[0]), 2)
        boxes, target = (boxes_from_ltrb(origin, d[positive]) for d in (ltrb, assignment.ltrb))
        loss_box = (giou_loss(boxes, target) * quality[positive]).sum()
        loss_cls = quality_focal_loss(logits, assignment.labels, quality, self.beta)
        return {"loss_cls": loss_cls / total, "loss_box": self.box_weight * loss_box / total}


def _inside(
    points: Float[Tensor, "l 2"], targets: Sequence[Targets]
) -> tuple[Int64[Tensor, " _v"], ...]:
    """The locations of each image that lie strictly inside any of its boxes."""
    masks = []
    for target in targets:
        corners = target.boxes
        inside = (points[:, None] > corners[:, :2]) & (points[:, None] < corners[:, 2:])
        masks.append(inside.all(dim=2).any(dim=1))
    inside = torch.stack(masks)  # (B, L)
    of_images: tuple[Tensor, ...] = inside.nonzero()[:, 1].split(inside.sum(dim=1).tolist())
    return of_images
