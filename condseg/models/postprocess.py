"""Dense predictions -> detections in the original image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torchvision.ops import batched_nms

from condseg.layers.parts import full_precision
from condseg.models.losses.masks import MaskLogits
from condseg.ops.boxes import boxes_from_ltrb
from condseg.ops.paste import paste
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
        score_threshold: a location and class is a candidate if its score is above.
        threshold_with_centerness: compare the head's ranking score, FCOS's class score x centerness
            (as the official CondInst does), instead of the class score.
        pre_nms_topk: max number of candidates per level.
        nms_threshold: IoU above which the lower scored box of the same class is removed.
        max_detections: per image; detections with the score of the last one are kept too.
        mask_threshold: score above which a pixel belongs to the mask.

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
        return Detections(found.boxes, found.scores, found.labels, masks)

    def candidates(self, dense: DensePredictions, image: int) -> Candidates:
        """The boxes of one image after thresholds, top-k and class-wise NMS."""
        head, locations = dense.head, dense.locations
        scores = head.scores(image)  # (L, K)
        compared = scores if self.threshold_with_centerness else head.class_scores(image)
        counts = [h * w for h, w in head.level_sizes]
        chosen, first = [], 0
        for passed, level_scores in zip(
            (compared > self.score_threshold).split(counts), scores.split(counts), strict=True
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
        final = head.final_scores(scores.flatten()[index])
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
        return paste(logits.float(), stride, info.size, info.original_size, self.mask_threshold)
