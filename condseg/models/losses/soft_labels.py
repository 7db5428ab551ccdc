"""RTMDet's rule of training: locations are chosen by what they predict, and scores mean IoU."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor
from torchvision.ops import box_iou, generalized_box_iou_loss

from condseg.models.condinst import CondInst
from condseg.ops.boxes import boxes_from_ltrb
from condseg.ops.distributed import mean_over_ranks
from condseg.ops.locations import location_levels
from condseg.ops.losses import quality_focal_loss
from condseg.structures import Assignment, DensePredictions, Targets


class SoftLabels:
    """Assigns each object the locations that predict it best, and trains scores to be IoUs.

    A location that lies strictly inside any box has for object j, with IoU u of its predicted box
    and probabilities p, the cost

        sum_k BCE(p_k, y_k) |y_k - p_k|^2 - iou_weight log(u + 1e-7) + 10^(d - center_radius),

    where y is u for the object's class and 0 elsewhere, d the distance to the box's centre in
    strides. Each object takes its cheapest locations: as many as the sum of its ``topk`` largest
    IoUs, rounded down, but at least one. A location that several objects take goes to the one for
    which it is cheapest. The losses are

        (sum QFL + box_weight sum u (1 - GIoU)) / max(sum u, 1).

    Args:
        topk: locations that an object may get at most.
        center_radius: strides from the centre at which the distance costs 1.
        iou_weight: of the box's part of the cost.
        beta: exponent of the quality focal loss.
        box_weight: of the box loss.
        mask_weight: of the mask loss, which is CondInst's.

    Source:
        RTMDet (arXiv 2212.07784), section 3.3, "label assignment and losses", where the paper's
        formulas leave units open as mmdetection has it; the numbers are its ``rtmdet-ins``
        configs'. There the locations are the cells' corners, here their centres as in FCOS.
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
        self.topk = topk
        self.center_radius = center_radius
        self.iou_weight = iou_weight
        self.beta = beta
        self.box_weight = box_weight
        self.mask_weight = mask_weight

    def __call__(
        self, network: CondInst, dense: DensePredictions, targets: Sequence[Targets]
    ) -> tuple[Assignment, dict[str, Tensor]]:
        """The positive locations, and the losses of classes and boxes.

        Args:
            network: made the predictions.
            dense: its predictions of B pictures.
            targets: of the B pictures.
        """
        logits, ltrb = dense.class_logits.float(), dense.ltrb.float()
        points = network.locations(dense)
        levels = location_levels(dense.level_sizes, points.device)
        stride = points.new_tensor(network.strides)[levels]
        instances, qualities, labels, goals = [], [], [], []
        for i, target in enumerate(targets):
            boxes = boxes_from_ltrb(points, ltrb[i].detach() * stride[:, None])
            instance, quality = self.assign(points, stride, boxes, logits[i].detach(), target)
            instances.append(instance)
            qualities.append(quality)
            background = target.labels.new_full((1,), network.num_classes)
            labels.append(torch.cat((target.labels, background))[instance])
            own = torch.cat((target.boxes, points.new_zeros(1, 4)))[instance]
            goals.append(torch.cat((points - own[:, :2], own[:, 2:] - points), 1) / stride[:, None])
        assignment = Assignment(torch.stack(instances), torch.stack(labels), torch.stack(goals))
        return assignment, self._losses(logits, ltrb, assignment, torch.stack(qualities))

    @torch.no_grad()
    def assign(
        self,
        points: Float[Tensor, "l 2"],
        stride: Float[Tensor, " l"],
        boxes: Float[Tensor, "l 4"],
        logits: Float[Tensor, "l k"],
        target: Targets,
    ) -> tuple[Int64[Tensor, " l"], Float[Tensor, " l"]]:
        """The object of each location of one picture (-1: none), and the IoU with its box.

        Args:
            points: (L, 2) locations in pixels.
            stride: (L,) of each.
            boxes: (L, 4) predicted, xyxy in pixels.
            logits: (L, K) of the classes.
            target: the picture's N objects.
        """
        instance = torch.full((len(points),), -1, device=points.device)
        quality = torch.zeros_like(stride)
        corners = target.boxes
        inside = (points[:, None] > corners[:, :2]) & (points[:, None] < corners[:, 2:])
        inside = inside.all(dim=2).any(dim=1).nonzero().squeeze(1)
        if len(inside) == 0:
            return instance, quality
        iou = box_iou(boxes[inside], corners).nan_to_num()  # 0 / 0: two boxes without area
        cost = self.cost(points[inside], stride[inside], logits[inside], iou, target)

        most = min(self.topk, len(inside))
        count = iou.topk(most, dim=0).values.sum(dim=0).int().clamp(min=1)
        cheapest = cost.topk(most, dim=0, largest=False).indices
        taken = torch.arange(most, device=count.device)[:, None] < count
        wanted = torch.zeros_like(cost, dtype=torch.bool).scatter(0, cheapest, taken)
        several = wanted.sum(dim=1) > 1
        owner = torch.where(several, cost.argmin(dim=1), wanted.int().argmax(dim=1))
        positive = wanted.any(dim=1)
        instance[inside[positive]] = owner[positive]
        quality[inside[positive]] = iou[positive, owner[positive]]
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

        The sum over the classes is split: a class with soft label 0 costs the same whichever the
        object, so nothing of size V N K is ever made.
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
        positive = assignment.instance >= 0
        total = mean_over_ranks(quality.sum()).clamp(min=1)
        origin = ltrb.new_zeros(int(positive.sum()), 2)
        boxes, goals = (boxes_from_ltrb(origin, d[positive]) for d in (ltrb, assignment.ltrb))
        loss_box = (generalized_box_iou_loss(boxes, goals) * quality[positive]).sum()
        loss_cls = quality_focal_loss(logits, assignment.labels, quality, self.beta)
        return {"loss_cls": loss_cls / total, "loss_box": self.box_weight * loss_box / total}
