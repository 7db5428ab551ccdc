"""The losses CondInst and BoxInst train with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condseg.models.condinst import CondInst
from condseg.models.losses.assigner import Assigner
from condseg.models.losses.boxinst import BoxInstLoss
from condseg.models.losses.soft_labels import SoftLabels
from condseg.ops.boxes import centerness, ltrb_overlap
from condseg.ops.boxinst import box_masks
from condseg.ops.distributed import mean_over_ranks
from condseg.ops.losses import BoxLoss, box_loss, dice_loss, focal_loss
from condseg.ops.masks import sample_at_stride
from condseg.structures import Assignment, Batch, DensePredictions, Supervision, Targets


class Criterion(nn.Module):
    """Focal, box, centerness (or IoU) and mask losses; with semantic logits, theirs as well.

    The mask loss of an object is dice where its mask is known, BoxInst's where only its box is.
    Sums are divided by counts of the global batch: each rank divides by the mean count of the
    ranks, so that averaged gradients are those of one process with the whole batch.

    Args:
        alpha: of the focal loss.
        gamma: of the focal loss.
        radius: of centre sampling in strides; None takes whole boxes.
        center_from_masks: sample around the masks' centres rather than the boxes'.
        box_loss: GIoU, linear IoU or log IoU.
        box_quality: what the centerness output learns: FCOS's centerness or the IoU.
        class_normalizer: the focal loss is divided by the positive locations, by their moving
            mean, or by all locations.
        max_proposals: positive locations of the batch that get a mask in training, drawn at
            random; None takes all.
        topk_proposals_per_image: instead, that many a picture: the best scored of each object.
        soft_labels: rule for a head without centerness, in place of all above but the proposals;
            None takes :class:`SoftLabels` as published.
        supervision: what all objects bring, "masks" or "boxes"; or "mixed", some this, some that.
            On the command line this is what ``data.supervision`` says.
        pairwise_threshold: these five belong to the loss from boxes, see :class:`BoxInstLoss`.
        pairwise_size: side of the window of neighbours.
        pairwise_dilation: their distance.
        pairwise_warmup_steps: steps over which the pairwise loss grows to its full weight.
        bottom_pixels_removed: rows at the picture's bottom whose colours are not looked at.

    Raises:
        ValueError: ``soft_labels`` is given, and the network's head has centerness.

    Source:
        FCOS (ICCV 2019), equation 2; CondInst (ECCV 2020), equations 4 and 5; BoxInst (CVPR
        2021), equation 1. The official code divides the mask losses by local counts, here they
        are global ones. That the pairwise loss counts for as much as is the share of masks
        learned from boxes is ours, for mixed supervision.
    """

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
        max_proposals: int | None = 500,
        topk_proposals_per_image: int | None = None,
        soft_labels: SoftLabels | None = None,
        supervision: Supervision = "masks",
        pairwise_threshold: float = 0.3,
        pairwise_size: int = 3,
        pairwise_dilation: int = 2,
        pairwise_warmup_steps: int = 10_000,
        bottom_pixels_removed: int = 10,
    ) -> None:
        super().__init__()
        self.alpha, self.gamma = alpha, gamma
        self.radius, self.center_from_masks = radius, center_from_masks
        self.box_loss: BoxLoss = box_loss
        self.box_quality = box_quality
        self.class_normalizer = class_normalizer
        self.max_proposals = max_proposals
        self.topk_proposals_per_image = topk_proposals_per_image
        self.soft_labels = soft_labels
        self.supervision = supervision
        self.boxinst = BoxInstLoss(
            pairwise_threshold,
            pairwise_size,
            pairwise_dilation,
            pairwise_warmup_steps,
            bottom_pixels_removed,
        )
        self.register_buffer("moving_positives", torch.tensor(100.0))

    def forward(
        self, network: CondInst, dense: DensePredictions, batch: Batch
    ) -> dict[str, Tensor]:
        """The losses by name; their sum is what is minimised.

        Args:
            network: made the predictions, and makes the masks of the positive locations.
            dense: its predictions.
            batch: the pictures and their targets, masks at the input's resolution.
        """
        if dense.centerness_logits is None:
            rule = self.soft_labels or SoftLabels()
            assignment, losses = rule(network, dense, batch.targets)
            mask_weight = rule.mask_weight
        elif self.soft_labels is not None:
            raise ValueError(
                "criterion.soft_labels trains a head without centerness (network.head rtmdet); "
                "this head has one"
            )
        else:
            assign = Assigner(
                network.strides, network.sizes_of_interest, self.radius, self.center_from_masks
            )
            assignment = assign(dense.level_sizes, batch.targets, network.num_classes)
            losses = self.dense_losses(dense, assignment)
            mask_weight = 1.0
        masks = self.mask_losses(network, dense, assignment, batch)
        losses |= {name: mask_weight * loss for name, loss in masks.items()}
        if dense.semantic_logits is not None:
            losses["loss_semantic"] = semantic_loss(
                dense.semantic_logits, batch.targets, network.strides[0], self.alpha, self.gamma
            )
        return losses

    def dense_losses(self, dense: DensePredictions, assignment: Assignment) -> dict[str, Tensor]:
        """Classes, boxes and centerness of all locations."""
        assert dense.centerness_logits is not None
        positive = assignment.instance >= 0
        count = mean_over_ranks(positive.sum().float()).clamp(min=1)
        logits = dense.class_logits.float()
        loss_cls = focal_loss(logits, assignment.labels, self.alpha, self.gamma)
        loss_cls = loss_cls / self._class_count(count, positive)

        predicted, target = dense.ltrb[positive].float(), assignment.ltrb[positive]
        quality_logits = dense.centerness_logits[positive].float()
        boxes = box_loss(predicted, target, self.box_loss)
        if self.box_quality == "iou":
            quality = ltrb_overlap(predicted, target)[0].detach()
            loss_box = boxes.sum() / count
        else:
            quality = centerness(target)
            weight = mean_over_ranks(quality.sum()).clamp(min=1e-6)
            loss_box = (boxes * quality).sum() / weight
        loss_quality = F.binary_cross_entropy_with_logits(quality_logits, quality, reduction="sum")
        return {
            "loss_cls": loss_cls,
            "loss_box": loss_box,
            "loss_centerness": loss_quality / count,
        }

    def _class_count(self, count: Tensor, positive: Tensor) -> Tensor:
        if self.class_normalizer == "locations":
            return mean_over_ranks(count.new_tensor(positive.numel()))
        if self.class_normalizer == "moving_positives":
            self.moving_positives.mul_(0.9).add_(0.1 * count)
            return self.moving_positives.clone()
        return count

    def mask_losses(
        self, network: CondInst, dense: DensePredictions, assignment: Assignment, batch: Batch
    ) -> dict[str, Tensor]:
        """Dice and BoxInst's losses of the chosen positive locations, means over all of them."""
        image, location = self.choose(dense, assignment)
        instance = assignment.instance[image, location]
        queries = network.queries(dense, image, location, instance)
        logits = network.mask_logits(dense, queries).float()
        stride = network.mask_head.out_stride
        targets = batch.targets
        first = torch.tensor([0, *(len(t.labels) for t in targets)], device=image.device).cumsum(0)
        instance = first[image] + instance  # counted through the batch
        count = mean_over_ranks(logits.new_tensor(len(image))).clamp(min=1)
        if self.supervision == "mixed":
            masked = torch.cat([t.has_mask for t in targets])[instance]
        else:
            masked = torch.full_like(image, self.supervision == "masks", dtype=torch.bool)
        losses = {}
        if self.supervision != "boxes":
            masks = torch.cat([sample_at_stride(t.masks, stride) for t in targets])
            dice = dice_loss(logits[masked].sigmoid(), masks[instance[masked]])
            losses["loss_mask"] = dice.sum() / count
        if self.supervision != "masks":
            boxes = torch.cat([t.boxes for t in targets])[instance[~masked]]
            projection, pairwise = self.boxinst(
                logits[~masked], boxes, image[~masked], batch, stride
            )
            share = mean_over_ranks((~masked).sum().float()) / count
            losses["loss_projection"] = projection.sum() / count
            losses["loss_pairwise"] = pairwise * share
        return losses

    def choose(self, dense: DensePredictions, assignment: Assignment) -> tuple[Tensor, Tensor]:
        """Picture and location of the positives that get a mask."""
        image, location = (assignment.instance >= 0).nonzero(as_tuple=True)
        if self.topk_proposals_per_image is not None:
            keep = self._best_of_each(dense, assignment, image, location)
        elif self.max_proposals is not None and len(image) > self.max_proposals:
            keep = torch.randperm(len(image), device=image.device)[: self.max_proposals]
        else:
            return image, location
        return image[keep], location[keep]

    def _best_of_each(
        self, dense: DensePredictions, assignment: Assignment, image: Tensor, location: Tensor
    ) -> Tensor:
        """Of each object the max(k // objects, 1) positives with the highest score."""
        assert self.topk_proposals_per_image is not None
        with torch.no_grad():
            scores = dense.class_logits[image, location].amax(1).sigmoid()
            if dense.centerness_logits is not None:
                scores = scores * dense.centerness_logits[image, location].sigmoid()
        instance = assignment.instance[image, location]
        kept = []
        for i in image.unique():
            objects = instance[image == i].unique()
            k = max(self.topk_proposals_per_image // len(objects), 1)
            for j in objects:
                here = ((image == i) & (instance == j)).nonzero().squeeze(1)
                kept.append(here[scores[here].topk(min(k, len(here))).indices])
        return torch.cat(kept) if kept else image.new_zeros(0)


def semantic_loss(
    logits: Tensor, targets: Sequence[Targets], stride: int, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Focal loss of per-pixel classes; where objects overlap the smallest one counts.

    A pixel on no mask, but in the box of an object without one, can be this or that and does not
    count.

    Args:
        logits: (B, K, H/stride, W/stride).
        targets: of the B pictures; masks are read at rows and columns stride // 2, ...
        stride: pixels of the picture a cell of the logits.
        alpha: of the focal loss.
        gamma: of the focal loss.

    Source:
        CondInst (ECCV 2020), section 4.5 (semantic branch).
    """
    background = logits.shape[1]
    labels, unknown = [], []
    for target in targets:
        masks = sample_at_stride(target.masks, stride)
        boxes = target.boxes[~target.has_mask]
        boxed = box_masks(boxes, (target.masks.shape[1], target.masks.shape[2]), stride).any(0)
        unknown.append(boxed & ~masks.any(0))
        if len(masks) == 0:
            size = logits.shape[-2:]
            labels.append(torch.full(size, background, device=logits.device, dtype=torch.int64))
            continue
        area = target.masks.sum(dim=(1, 2)).float()[:, None, None].expand(masks.shape)
        smallest, index = area.masked_fill(~masks, torch.inf).min(dim=0)
        labels.append(target.labels[index].where(smallest.isfinite(), background))
    label = torch.stack(labels)
    count = mean_over_ranks((label < background).sum().float()).clamp(min=1)
    # Of background that is certain the focal loss is exactly zero.
    logits = logits.float().masked_fill(torch.stack(unknown)[:, None], -1e4)
    return focal_loss(logits.permute(0, 2, 3, 1), label, alpha, gamma) / count
