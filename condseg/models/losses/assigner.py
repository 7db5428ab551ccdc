"""FCOS's assignment of objects to locations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from condseg.ops.masks import mask_centers
from condseg.structures import Assignment, Locations, Targets


class Assigner:
    """Assigns each location the smallest object that it is central to, at the object's level.

    A location is a candidate for an object if it lies strictly inside the box clipped to
    ``radius`` strides around the object's center, and the largest of its four distances lies in
    the closed regression range of its level. Of several candidates the smallest box is assigned,
    the first one if they are equal.

    Args:
        radius: of center sampling, in strides; None samples the whole box.
        center_from_masks: sample around the mask's mean pixel, as CondInst does, not the box's
            center; the box's center is used for an object without a mask.

    Source:
        FCOS (ICCV 2019), section 3.2, with the center sampling of its journal version
        (TPAMI 2020); CondInst (ECCV 2020), section 3.3. The official code finds no positives in an
        image whose first center has x = 0; here such an object is like any other.
    """

    def __init__(self, radius: float | None = 1.5, center_from_masks: bool = True) -> None:
        self.radius = radius
        self.center_from_masks = center_from_masks

    @torch.no_grad()
    def __call__(
        self, locations: Locations, targets: Sequence[Targets], num_classes: int
    ) -> Assignment:
        """Assign every location of every image; ``num_classes`` is the label of background."""
        images = []
        for target in targets:
            instance, ltrb = self._assign_one(locations, target)
            background = target.labels.new_full((1,), num_classes)
            label = torch.cat((target.labels, background))[instance]
            images.append((instance, label, ltrb / locations.stride[:, None]))
        return Assignment.of(*map(torch.stack, zip(*images, strict=True)))

    def _assign_one(self, locations: Locations, target: Targets) -> tuple[Tensor, Tensor]:
        boxes, points = target.boxes, locations.points
        if len(boxes) == 0:
            instance = torch.full((len(points),), -1, device=boxes.device)
            return instance, boxes.new_zeros(len(points), 4)
        # (L, N, 4)
        ltrb = torch.cat((points[:, None] - boxes[:, :2], boxes[:, 2:] - points[:, None]), dim=2)
        inside = ltrb.amin(2) > 0  # (L, N)
        if self.radius is not None:
            inside = self._near_center(locations, target, self.radius)
        lower, upper = locations.regression_range[:, None].unbind(2)  # (L, 1)
        furthest = ltrb.amax(2)  # (L, N)
        in_range = (furthest >= lower) & (furthest <= upper)
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        area = area.expand(len(points), -1).masked_fill(~(inside & in_range), torch.inf)
        smallest, instance = area.min(dim=1)  # (L,)
        positive = smallest.isfinite()
        chosen = ltrb[torch.arange(len(points), device=boxes.device), instance]  # (L, 4)
        return instance.where(positive, -1), chosen.where(positive[:, None], 0.0)

    def _near_center(self, locations: Locations, target: Targets, radius: float) -> Tensor:
        boxes = target.boxes
        center = (boxes[:, :2] + boxes[:, 2:]) / 2
        if self.center_from_masks:
            center = mask_centers(target.masks).where(target.has_mask[:, None], center)
        reach = radius * locations.stride[:, None, None]
        top_left = torch.maximum(center - reach, boxes[:, :2])  # (L, N, 2)
        bottom_right = torch.minimum(center + reach, boxes[:, 2:])
        points = locations.points[:, None]
        return ((points > top_left) & (points < bottom_right)).all(dim=2)
