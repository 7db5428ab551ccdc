"""Which object each location is responsible for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from condseg.ops.locations import location_levels, pyramid_locations
from condseg.ops.masks import mask_centers
from condseg.structures import Assignment, Size, Targets


class Assigner:
    """FCOS's rule: a location belongs to the smallest object that it is central to, at its level.

    A location is a candidate for an object when it lies strictly inside the box clipped to
    ``radius`` strides around the object's centre, and the largest of its four distances lies in
    the level's closed range [s_{l-1}, s_l]. Of several candidates the smallest box wins, ties go
    to the first.

    Args:
        strides: of the levels.
        sizes_of_interest: upper ends of the ranges of all levels but the last, pixels.
        radius: of centre sampling, in strides; None takes the whole box.
        center_from_masks: the centre is the mask's mean pixel, as CondInst trains, not the box's;
            an object without a mask has its box's all the same.

    Source:
        FCOS (ICCV 2019), section 3.2, with the centre sampling of its journal version
        (TPAMI 2020); CondInst (ECCV 2020), section 3.3. The official code finds no positives in a
        picture whose first centre has x = 0; here such an object is like any other.
    """

    def __init__(
        self,
        strides: Sequence[int],
        sizes_of_interest: Sequence[int],
        radius: float | None = 1.5,
        center_from_masks: bool = True,
    ) -> None:
        self.strides = tuple(strides)
        self.lower = (-1.0, *sizes_of_interest)
        self.upper = (*sizes_of_interest, 1e8)
        self.radius = radius
        self.center_from_masks = center_from_masks

    @torch.no_grad()
    def __call__(
        self, level_sizes: Sequence[Size], targets: Sequence[Targets], num_classes: int
    ) -> Assignment:
        """Assign every location of every picture.

        Args:
            level_sizes: (height, width) of each level's map.
            targets: of B pictures.
            num_classes: K, the label of background.
        """
        device = targets[0].boxes.device
        points = pyramid_locations(level_sizes, self.strides, device)
        levels = location_levels(level_sizes, device)
        stride, lower, upper = (
            torch.tensor(values, device=device, dtype=torch.float32)[levels]
            for values in (self.strides, self.lower, self.upper)
        )
        instances, labels, distances = [], [], []
        for target in targets:
            instance, ltrb = self._one(points, stride, lower, upper, target)
            background = target.labels.new_full((1,), num_classes)
            instances.append(instance)
            labels.append(torch.cat((target.labels, background))[instance])
            distances.append(ltrb / stride[:, None])
        return Assignment(torch.stack(instances), torch.stack(labels), torch.stack(distances))

    def _one(
        self, points: Tensor, stride: Tensor, lower: Tensor, upper: Tensor, target: Targets
    ) -> tuple[Tensor, Float[Tensor, "l 4"]]:
        boxes = target.boxes
        if len(boxes) == 0:
            instance = torch.full((len(points),), -1, device=boxes.device)
            return instance, boxes.new_zeros(len(points), 4)
        ltrb = torch.cat((points[:, None] - boxes[:, :2], boxes[:, 2:] - points[:, None]), dim=2)
        inside = self._inside(points, stride, target) if self.radius else ltrb.amin(2) > 0
        furthest = ltrb.amax(2)
        fits = (furthest >= lower[:, None]) & (furthest <= upper[:, None])
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        area = area.expand(len(points), -1).masked_fill(~(inside & fits), torch.inf)
        smallest, instance = area.min(dim=1)
        positive = smallest.isfinite()
        chosen = ltrb[torch.arange(len(points), device=boxes.device), instance]
        return instance.where(positive, -1), chosen.where(positive[:, None], 0.0)

    def _inside(self, points: Tensor, stride: Tensor, target: Targets) -> Tensor:
        assert self.radius is not None
        boxes = target.boxes
        center = (boxes[:, :2] + boxes[:, 2:]) / 2
        if self.center_from_masks:
            center = mask_centers(target.masks).where(target.has_mask[:, None], center)
        reach = self.radius * stride[:, None, None]
        top_left = torch.maximum(center - reach, boxes[:, :2])
        bottom_right = torch.minimum(center + reach, boxes[:, 2:])
        here = points[:, None]
        return ((here > top_left) & (here < bottom_right)).all(dim=2)
