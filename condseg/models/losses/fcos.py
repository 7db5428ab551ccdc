"""FCOS's losses of classes, boxes and centerness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from condseg.models.losses.assigner import Assigner
from condseg.models.losses.base import DenseLoss
from condseg.ops.boxes import centerness, ltrb_overlap
from condseg.ops.distributed import mean_over_ranks
from condseg.ops.losses import BoxLoss, box_loss, focal_loss
from condseg.structures import Assignment, FCOSPredictions, HeadPredictions, Locations, Targets


class FCOSLoss(DenseLoss):
    """Focal loss of the classes, IoU loss of the boxes, cross entropy of the centerness.

    Sums are divided by counts of the global batch: each rank divides by the mean count of the
    ranks, so that averaged gradients are those of one process with the whole batch.

    Args:
        alpha: of the focal loss.
        gamma: of the focal loss.
        radius: of center sampling in strides; None samples whole boxes.
        center_from_masks: sample around the masks' centers rather than the boxes'.
        box_loss: GIoU, linear IoU or log IoU.
        box_quality: what the centerness output learns: FCOS's centerness or the IoU.
        class_normalizer: the focal loss is divided by the number of positive locations, by its
            moving average, or by the number of all locations.

    Source:
        FCOS (ICCV 2019), equation 2.
    """

    predictions = FCOSPredictions
    moving_positives: Tensor

    def __init__(
        self,
        alpha: float = 0.25,
        gamma: float = 2.0,
        radius: float | None = 1.5,
        center_from_masks: bool = True,
        box_loss: BoxLoss = "giou",
        box_quality: Literal["centerness", "iou"] = "centerness",
        class_normalizer: Literal["positives", "moving_positives", "locations"] = "positives",
    ) -> None:
        super().__init__()
        self.alpha, self.gamma = alpha, gamma
        self.assign = Assigner(radius, center_from_masks)
        self.box_loss: BoxLoss = box_loss
        self.box_quality, self.class_normalizer = box_quality, class_normalizer
        self.register_buffer("moving_positives", torch.tensor(100.0))

    def forward(
        self, head: HeadPredictions, locations: Locations, targets: Sequence[Targets]
    ) -> tuple[Assignment, dict[str, Tensor]]:
        assert isinstance(head, FCOSPredictions)
        assignment = self.assign(locations, targets, head.class_logits.shape[2])
        return assignment, self.losses(head, assignment)

    def losses(self, head: FCOSPredictions, assignment: Assignment) -> dict[str, Tensor]:
        """The losses of all locations, given their assignment."""
        positive = assignment.image_index, assignment.location_index  # (P,) each
        number = torch.full((), float(len(positive[0])), device=head.ltrb.device)
        count = mean_over_ranks(number).clamp(min=1)
        logits = head.class_logits.float()
        loss_cls = focal_loss(logits, assignment.labels, self.alpha, self.gamma)
        loss_cls = loss_cls / self._class_count(count, assignment.instance.numel())

        predicted, target = head.ltrb[positive].float(), assignment.ltrb[positive]  # (P, 4)
        quality_logits = head.centerness_logits[positive].float()  # (P,)
        boxes = box_loss(predicted, target, self.box_loss)
        if self.box_quality == "iou":
            quality = ltrb_overlap(predicted, target)[0].detach()
            loss_box = boxes.sum() / count
        else:
            quality = centerness(target)
            loss_box = (boxes * quality).sum() / mean_over_ranks(quality.sum()).clamp(min=1e-6)
        loss_quality = F.binary_cross_entropy_with_logits(quality_logits, quality, reduction="sum")
        loss_quality = loss_quality / count
        return {"loss_cls": loss_cls, "loss_box": loss_box, "loss_centerness": loss_quality}

    def _class_count(self, count: Tensor, locations: int) -> Tensor:
        if self.class_normalizer == "locations":
            return mean_over_ranks(torch.full_like(count, locations))
        if self.class_normalizer == "moving_positives":
            self.moving_positives.mul_(0.9).add_(0.1 * count)
            return self.moving_positives.clone()
        return count
