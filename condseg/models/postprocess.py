"""Dense predictions -> detections in the original image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torchvision.ops import batched_nms, clip_boxes_to_image, nms

from condseg.layers.parts import full_precision
from condseg.models.losses.masks import MaskLogits
from condseg.ops.boxes import boxes_from_ltrb
from condseg.ops.islands import without_islands
from condseg.ops.paste import MaskInterpolation, paste
from condseg.structures import DensePredictions, Detections, ImageInfo


@dataclass(frozen=True, slots=True)
class Candidates:
    """Boxes of one image after NMS, best first, in pixels of the input.

    Attributes:
        boxes: (D, 4) xyxy, not clipped.
        scores: (D,) final scores of the head.
        labels: (D,).
        locations: (D,) index 0..L-1 of the location that predicted it.
    """

    boxes: Float[Tensor, "d 4"]
    scores: Float[Tensor, " d"]
    labels: Int64[Tensor, " d"]
    locations: Int64[Tensor, " d"]


class PostProcess:
    """Chooses the detections of each image, then computes and resizes their masks.

    Args:
        score_threshold: min score of a detection, as it is shown (for FCOS's head the square root
            of class score x centerness). None: only ``candidate_threshold`` applies.
        candidate_threshold: the published threshold: a location and class is a candidate if its
            ranking score (for FCOS's head class score x centerness) is above. Not used with a
            ``score_threshold``.
        threshold_with_centerness: False: ``candidate_threshold`` is for the class score alone, as
            in mmdetection.
        pre_nms_topk: max number of candidates per level.
        nms_threshold: IoU above which the lower scored box of the same class is removed.
        class_agnostic_nms: whether that applies to boxes of different classes as well.
        max_detections: per image; detections with the score of the last one are kept too.
        mask_threshold: score above which a pixel belongs to the mask.
        keep_islands: False removes the parts of a mask that do not touch its box.
        mask_interpolation: "scores", as CondInst's masks are upsampled, or "logits", as
            RTMDet-Ins's, see :data:`condseg.ops.paste.MaskInterpolation`.
        clip_before_nms: whether boxes are clipped to the network's input before NMS, as in
            mmdetection; to the original image they are clipped in any case.

    Raises:
        ValueError: a value is outside its range.

    Source:
        FCOS (ICCV 2019), section 3; CondInst (ECCV 2020), section 3.4. AdelaiDet's settings are
        the defaults; class-agnostic NMS and the removal of islands are not in the papers.
    """

    def __init__(
        self,
        score_threshold: float | None = None,
        candidate_threshold: float = 0.05,
        threshold_with_centerness: bool = True,
        pre_nms_topk: int = 1000,
        nms_threshold: float = 0.6,
        class_agnostic_nms: bool = False,
        max_detections: int = 100,
        mask_threshold: float = 0.5,
        keep_islands: bool = True,
        mask_interpolation: MaskInterpolation = "scores",
        clip_before_nms: bool = False,
    ) -> None:
        self.score_threshold = score_threshold
        self.candidate_threshold = candidate_threshold
        self.threshold_with_centerness = threshold_with_centerness
        self.pre_nms_topk = pre_nms_topk
        self.nms_threshold = nms_threshold
        self.class_agnostic_nms = class_agnostic_nms
        self.max_detections = max_detections
        self.mask_threshold = mask_threshold
        self.keep_islands = keep_islands
        self.mask_interpolation = mask_interpolation
        self.clip_before_nms = clip_before_nms
        self._check()

    def _check(self) -> None:
        for name, value in vars(self).items():
            if name.endswith("threshold") and value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; 0..1 is allowed")
            if name in ("pre_nms_topk", "max_detections") and value < 1:
                raise ValueError(f"{name} is {value}; 1 or more is allowed")

    def replaced(self, **options: Any) -> PostProcess:
        """A copy with other options; those that are None stay.

        Raises:
            ValueError: a value is outside its range.
        """
        return type(self)(**vars(self) | {k: v for k, v in options.items() if v is not None})

    @torch.no_grad()
    def __call__(
        self, dense: DensePredictions, infos: Sequence[ImageInfo], mask_logits: MaskLogits
    ) -> list[Detections]:
        """Detections of each image in pixels of the original, in full precision under autocast.

        ``mask_logits`` computes the masks of chosen locations, see ``CondInst.mask_logits``.
        """
        with full_precision(dense.mask_features):
            return [self._detect(dense, i, info, mask_logits) for i, info in enumerate(infos)]

    def _detect(
        self, dense: DensePredictions, image: int, info: ImageInfo, mask_logits: MaskLogits
    ) -> Detections:
        found = self.to_original(self.candidates(dense, image), info)
        image_index = torch.full_like(found.locations, image)
        logits = mask_logits(dense, image_index, found.locations)
        masks = self.paste(logits, info, dense.image_size[1] // logits.shape[2])
        if not self.keep_islands:
            masks = without_islands(masks, found.boxes)
        return Detections(found.boxes, found.scores, found.labels, masks)

    def candidates(self, dense: DensePredictions, image: int) -> Candidates:
        """The boxes of one image after thresholds, top-k and NMS."""
        head, locations = dense.head, dense.locations
        scores = head.scores(image)  # (L, K)
        if self.score_threshold is not None:
            is_candidate = head.final_scores(scores) >= self.score_threshold
        else:
            with_centerness = self.threshold_with_centerness
            compared = scores if with_centerness else head.class_scores(image)
            is_candidate = compared > self.candidate_threshold
        counts = [h * w for h, w in head.level_sizes]
        chosen, first = [], 0
        for passed, level_scores in zip(
            is_candidate.split(counts), scores.split(counts), strict=True
        ):
            index = passed.flatten().nonzero().squeeze(1)
            if len(index) > self.pre_nms_topk:
                index = index[level_scores.flatten()[index].topk(self.pre_nms_topk).indices]
            chosen.append(index + first)
            first += level_scores.numel()
        index = torch.cat(chosen)  # into (L, K)
        location, label = index // scores.shape[1], index % scores.shape[1]
        ltrb = head.ltrb[image, location].float() * locations.stride[location, None]
        boxes = boxes_from_ltrb(locations.points[location], ltrb)
        if self.clip_before_nms:
            boxes = clip_boxes_to_image(boxes, dense.image_size)
        final = head.final_scores(scores.flatten()[index])
        if self.class_agnostic_nms:
            keep = nms(boxes, final, self.nms_threshold)
        else:
            keep = batched_nms(boxes, final, label, self.nms_threshold)
        if len(keep) > self.max_detections:
            keep = keep[final[keep] >= final[keep[self.max_detections - 1]]]
        return Candidates(boxes[keep], final[keep], label[keep], location[keep])

    def to_original(self, found: Candidates, info: ImageInfo) -> Candidates:
        """Candidates in pixels of the original image, clipped; boxes outside of it are removed."""
        height, width = info.original_size
        scale = found.boxes.new_tensor((width / info.size[1], height / info.size[0])).repeat(2)
        limit = found.boxes.new_tensor((width, height, width, height))
        boxes = torch.minimum((found.boxes * scale).clamp(min=0), limit)
        keep = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        values = (boxes, found.scores, found.labels, found.locations)
        return Candidates(*(value[keep] for value in values))

    def paste(
        self, logits: Float[Tensor, "d h4 w4"], info: ImageInfo, stride: int
    ) -> Bool[Tensor, "d h w"]:
        """Masks of the original size: upsampled, cropped to the image, resized, thresholded."""
        sizes = (info.size, info.original_size)
        how = (self.mask_threshold, self.mask_interpolation)
        return paste(logits.float(), stride, *sizes, *how)


def postprocess_arguments(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of :class:`PostProcess` in a checkpoint's recipe of any version.

    In a recipe without ``candidate_threshold``, ``score_threshold`` is what that option is now:
    a threshold of class score x centerness.
    """
    arguments = dict(recipe)
    if "candidate_threshold" not in arguments and "score_threshold" in arguments:
        arguments["candidate_threshold"] = arguments.pop("score_threshold")
    return arguments
