"""Dense predictions to detections in the original picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torchvision.ops import batched_nms

from condseg.layers import Implementation
from condseg.layers.parts import full_precision
from condseg.models.condinst import CondInst
from condseg.ops.boxes import boxes_from_ltrb
from condseg.ops.locations import location_levels, pyramid_locations
from condseg.ops.paste import paste, paste_plainly
from condseg.structures import DensePredictions, Detections, ImageInfo


@dataclass(frozen=True, slots=True)
class Candidates:
    """Boxes that are left of one picture, best first, in pixels of the input.

    Attributes:
        boxes: (D, 4) xyxy, not clipped.
        scores: (D,) sqrt(class score x centerness); the class score where there is no centerness.
        labels: (D,).
        locations: (D,) index 0..L-1 of the location each came from.
    """

    boxes: Float[Tensor, "d 4"]
    scores: Float[Tensor, " d"]
    labels: Int64[Tensor, " d"]
    locations: Int64[Tensor, " d"]


class PostProcess:
    """Chooses the detections of each picture, then makes and resizes their masks.

    Args:
        score_threshold: a location and class stay when their score is above it.
        threshold_with_centerness: the score that is compared is class x centerness (the official
            CondInst), else the class score alone.
        pre_nms_topk: best candidates that each level may keep.
        nms_threshold: IoU above which the worse box of the same class goes.
        max_detections: detections a picture; of equal scores at the end all stay.
        mask_threshold: pixels of the mask are those above it.

    Source:
        FCOS (ICCV 2019), section 3; CondInst (ECCV 2020), section 3.4.
    """

    def __init__(
        self,
        score_threshold: float = 0.05,
        threshold_with_centerness: bool = True,
        pre_nms_topk: int = 1000,
        nms_threshold: float = 0.6,
        max_detections: int = 100,
        mask_threshold: float = 0.5,
    ) -> None:
        self.score_threshold = score_threshold
        self.threshold_with_centerness = threshold_with_centerness
        self.pre_nms_topk = pre_nms_topk
        self.nms_threshold = nms_threshold
        self.max_detections = max_detections
        self.mask_threshold = mask_threshold

    @torch.no_grad()
    def __call__(
        self, network: CondInst, dense: DensePredictions, infos: Sequence[ImageInfo]
    ) -> list[Detections]:
        """Detections of each picture in its original pixels; under autocast in full precision, too.

        Args:
            network: made the predictions, and makes the masks.
            dense: its predictions of B pictures.
            infos: of the B pictures.
        """
        with full_precision(dense.ltrb):
            return [self._detect(network, dense, i, info) for i, info in enumerate(infos)]

    def _detect(
        self, network: CondInst, dense: DensePredictions, image: int, info: ImageInfo
    ) -> Detections:
        found = self.fit(self.candidates(dense, image, network.strides), info)
        images = torch.full_like(found.locations, image)
        logits = network.mask_logits(dense, network.queries(dense, images, found.locations))
        masks = self.paste(logits, info, network.mask_head.out_stride, network.implementation)
        return Detections(found.boxes, found.scores, found.labels, masks)

    def candidates(self, dense: DensePredictions, image: int, strides: Sequence[int]) -> Candidates:
        """What is left of one picture after thresholds, top-k and class-wise NMS."""
        class_scores = dense.class_logits[image].float().sigmoid()
        joint = class_scores
        if dense.centerness_logits is not None:
            joint = class_scores * dense.centerness_logits[image].float().sigmoid()[:, None]
        compared = joint if self.threshold_with_centerness else class_scores
        counts = [h * w for h, w in dense.level_sizes]
        chosen, first = [], 0
        for passed, scores in zip(
            (compared > self.score_threshold).split(counts), joint.split(counts), strict=True
        ):
            index = passed.flatten().nonzero().squeeze(1)
            if len(index) > self.pre_nms_topk:
                index = index[scores.flatten()[index].topk(self.pre_nms_topk).indices]
            chosen.append(index + first)
            first += scores.numel()
        index = torch.cat(chosen)
        location, label = index // joint.shape[1], index % joint.shape[1]
        levels = location_levels(dense.level_sizes, index.device)[location]
        stride = torch.tensor(strides, device=index.device)[levels, None]
        points = pyramid_locations(dense.level_sizes, strides, index.device)[location]
        boxes = boxes_from_ltrb(points, dense.ltrb[image, location].float() * stride)
        scores = joint.flatten()[index]
        scores = scores if dense.centerness_logits is None else scores.sqrt()
        keep = batched_nms(boxes, scores, label, self.nms_threshold)
        if len(keep) > self.max_detections:
            keep = keep[scores[keep] >= scores[keep[self.max_detections - 1]]]
        return Candidates(boxes[keep], scores[keep], label[keep], location[keep])

    def fit(self, found: Candidates, info: ImageInfo) -> Candidates:
        """The candidates in the original's pixels, clipped; boxes wholly outside are gone."""
        height, width = info.original_size
        scale = found.boxes.new_tensor((width / info.size[1], height / info.size[0])).repeat(2)
        limit = found.boxes.new_tensor((width, height, width, height))
        boxes = torch.minimum((found.boxes * scale).clamp(min=0), limit)
        keep = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        return Candidates(
            boxes[keep], found.scores[keep], found.labels[keep], found.locations[keep]
        )

    def paste(
        self,
        logits: Float[Tensor, "d h4 w4"],
        info: ImageInfo,
        stride: int,
        implementation: Implementation = "fast",
    ) -> Bool[Tensor, "d h w"]:
        """Masks of the original size: up-sampled, cut to the picture, resized, thresholded."""
        form = paste_plainly if implementation == "reference" else paste
        return form(logits.float(), stride, info.size, info.original_size, self.mask_threshold)
