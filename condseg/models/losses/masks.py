"""Losses of the masks of positive locations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Int64
from torch import Tensor, nn

from condseg.models.losses.boxinst import BoxInstLoss
from condseg.ops.distributed import mean_over_ranks
from condseg.ops.groups import by_group, ranks
from condseg.ops.losses import dice_loss
from condseg.ops.masks import sample_at_stride
from condseg.structures import (
    Assignment,
    Batch,
    DensePredictions,
    HeadPredictions,
    Supervision,
    Targets,
)

MaskLogits = Callable[[DensePredictions, Tensor, Tensor], Tensor]
"""(dense predictions, image index (P,), location index (P,)) -> mask logits (P, H/4, W/4)."""


class MaskLoss(nn.Module):
    """Dice loss of masks that are known, BoxInst's losses where only the box is known.

    Args:
        max_proposals: positive locations of the batch whose masks are trained, drawn at random;
            None trains all.
        topk_proposals_per_image: instead, this many per image: each object's best scored ones.
        supervision: what is known of the objects: "masks", "boxes", or "mixed". On the command
            line ``data.supervision`` sets it.
        pairwise_threshold: this and the next options are those of :class:`BoxInstLoss`.
        pairwise_size: side of the window of neighbors.
        pairwise_dilation: distance of the neighbors.
        pairwise_warmup_steps: steps over which the pairwise loss grows to its full weight.
        bottom_pixels_removed: rows at the image's bottom whose colors are ignored.

    Source:
        CondInst (ECCV 2020), equation 5; BoxInst (CVPR 2021), equation 1. The official code divides
        by counts of the rank, here by those of the global batch. With "mixed" supervision the
        pairwise loss is weighted by the share of masks learned from boxes, which is our choice.
    """

    def __init__(
        self,
        max_proposals: int | None = 500,
        topk_proposals_per_image: int | None = None,
        supervision: Supervision = "masks",
        pairwise_threshold: float = 0.3,
        pairwise_size: int = 3,
        pairwise_dilation: int = 2,
        pairwise_warmup_steps: int = 10_000,
        bottom_pixels_removed: int = 10,
    ) -> None:
        super().__init__()
        self.max_proposals, self.topk_proposals_per_image = max_proposals, topk_proposals_per_image
        self.supervision = supervision
        self.boxinst = BoxInstLoss(
            pairwise_threshold,
            pairwise_size,
            pairwise_dilation,
            pairwise_warmup_steps,
            bottom_pixels_removed,
        )

    def forward(
        self,
        dense: DensePredictions,
        assignment: Assignment,
        batch: Batch,
        mask_logits: MaskLogits,
    ) -> dict[str, Tensor]:
        """Mean losses of the chosen positive locations, by name."""
        image, location = self.choose(dense.head, assignment)  # (P,)
        logits = mask_logits(dense, image, location).float()  # (P, H/4, W/4)
        stride = dense.image_size[1] // logits.shape[2]
        targets = batch.targets
        first = _first_objects(targets)
        instance = first[image] + assignment.instance[image, location]  # (P,) in the whole batch
        number = torch.full((), float(len(image)), device=logits.device)
        count = mean_over_ranks(number).clamp(min=1)
        losses = {}
        masked: slice | Tensor = slice(None)
        boxed: slice | Tensor = slice(None)
        if self.supervision == "mixed":
            masked, boxed = _split(torch.cat([t.has_mask for t in targets])[instance])
        if self.supervision != "boxes":
            masks = torch.cat([sample_at_stride(t.masks, stride) for t in targets])
            dice = dice_loss(logits[masked].sigmoid(), masks[instance[masked]])
            losses["loss_mask"] = dice.sum() / count
        if self.supervision != "masks":
            own = logits[boxed]
            boxes = torch.cat([t.boxes for t in targets])[instance[boxed]]
            projection, pairwise = self.boxinst(own, boxes, image[boxed], batch, stride)
            losses["loss_projection"] = projection.sum() / count
            share = mean_over_ranks(torch.full_like(number, len(own))) / count
            losses["loss_pairwise"] = pairwise * share
        return losses

    def choose(
        self, head: HeadPredictions, assignment: Assignment
    ) -> tuple[Int64[Tensor, " p"], Int64[Tensor, " p"]]:
        """Image and location of the positives whose masks are trained."""
        image, location = assignment.image_index, assignment.location_index
        if self.topk_proposals_per_image is not None:
            keep = _best_of_each(head, assignment, self.topk_proposals_per_image)
        elif self.max_proposals is not None and len(image) > self.max_proposals:
            keep = torch.randperm(len(image), device=image.device)[: self.max_proposals]
        else:
            return image, location
        return image[keep], location[keep]


@torch.no_grad()
def _best_of_each(
    head: HeadPredictions, assignment: Assignment, limit: int
) -> Int64[Tensor, " kept"]:
    """Of each object the max(limit // objects, 1) positives with the highest score.

    The objects are those of the image that have positives.
    """
    image, location = assignment.image_index, assignment.location_index
    scores = head.scores(image, location).amax(1)  # (P,)
    instance = assignment.instance[image, location]
    group = image * 2**32 + instance
    order = by_group(group, scores)
    rank, _ = ranks(group[order])
    # An object's first positive counts for its image.
    number = torch.zeros(len(assignment.instance), dtype=torch.int64, device=image.device)
    number.index_add_(0, image[order], (rank == 0).long())
    count = (limit // number.clamp(min=1)).clamp(min=1)  # (B,)
    return order[(rank < count[image[order]]).nonzero().squeeze(1)]


def _first_objects(targets: Sequence[Targets]) -> Int64[Tensor, " b"]:
    """Number of objects before each image of the batch, without a copy to the device."""
    image = torch.cat([torch.full_like(t.labels, i) for i, t in enumerate(targets)])  # (N,)
    images = torch.arange(len(targets), device=image.device)
    return torch.searchsorted(image, images)


def _split(chosen: Bool[Tensor, " p"]) -> tuple[Int64[Tensor, " m"], Int64[Tensor, " n"]]:
    """Indices of the elements that are true and of those that are not."""
    order = (~chosen).long().argsort(stable=True)
    number = int(chosen.sum())
    return order[:number], order[number:]
