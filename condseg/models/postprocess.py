"""Dense predictions -> detections in the original image."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torchvision.ops import batched_nms, clip_boxes_to_image, nms

from condseg.layers.parts import full_precision
from condseg.models.losses.masks import MaskLogits
from condseg.ops.boxes import boxes_from_ltrb
from condseg.ops.device import is_asynchronous, to_device
from condseg.ops.groups import by_group, ranks
from condseg.ops.islands import without_islands
from condseg.ops.paste import MaskInterpolation, paste_batch
from condseg.structures import DensePredictions, Detections, ImageInfo


@dataclass(frozen=True, slots=True)
class Candidates:
    """Boxes of a batch after NMS, image after image, each image's best first.

    Attributes:
        image: (D,) index of the image.
        boxes: (D, 4) xyxy, in pixels of the input and not clipped, or in pixels of the original.
        scores: (D,) final scores of the head.
        labels: (D,).
        locations: (D,) index 0..L-1 of the location that predicted it.
    """

    image: Int64[Tensor, " d"]
    boxes: Float[Tensor, "d 4"]
    scores: Float[Tensor, " d"]
    labels: Int64[Tensor, " d"]
    locations: Int64[Tensor, " d"]

    def __getitem__(self, chosen: Tensor | slice) -> Candidates:
        """Some of them, by indices, booleans or a slice."""
        return Candidates(*(getattr(self, name)[chosen] for name in self.__slots__))


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
            found, keep = self._candidates(dense)
            found = self.to_original(found, infos, keep)
            images = torch.arange(len(infos) + 1, device=found.image.device)
            starts = torch.searchsorted(found.image, images).tolist()
            of_images = [slice(*ends) for ends in itertools.pairwise(starts)]
            if is_asynchronous(found.boxes):
                whole = self._masks(dense, found, 0, infos, mask_logits)
                masks = [whole[rows] for rows in of_images]
            else:
                masks = [
                    self._masks(dense, found[rows], i, [info], mask_logits)
                    for i, (rows, info) in enumerate(zip(of_images, infos, strict=True))
                ]
            return [
                self._detections(found[rows], own, info)
                for rows, own, info in zip(of_images, masks, infos, strict=True)
            ]

    def _masks(
        self,
        dense: DensePredictions,
        found: Candidates,
        first: int,
        infos: Sequence[ImageInfo],
        mask_logits: MaskLogits,
    ) -> Bool[Tensor, "d h w"]:
        """Masks of the detections in images ``first``, ``first + 1``, ..., see :meth:`paste`."""
        logits = mask_logits(dense, found.image, found.locations)
        stride = dense.image_size[1] // logits.shape[2]
        return self.paste(logits, found.image - first, infos, stride)

    def _detections(self, found: Candidates, masks: Tensor, info: ImageInfo) -> Detections:
        height, width = info.original_size
        masks = masks[:, :height, :width]
        if not self.keep_islands:
            masks = without_islands(masks, found.boxes)
        return Detections(found.boxes, found.scores, found.labels, masks)

    def candidates(self, dense: DensePredictions) -> Candidates:
        """The boxes of a batch after thresholds, top-k and NMS, in pixels of the input."""
        found, keep = self._candidates(dense)
        return found[keep]

    def _candidates(self, dense: DensePredictions) -> tuple[Candidates, Bool[Tensor, " c"]]:
        """All boxes after NMS, and which of them are among the best of their image."""
        head, locations = dense.head, dense.locations
        scores = head.scores(slice(None))  # (B, L, K)
        if self.score_threshold is not None:
            is_candidate = head.final_scores(scores) >= self.score_threshold
        else:
            with_centerness = self.threshold_with_centerness
            compared = scores if with_centerness else head.class_scores(slice(None))
            is_candidate = compared > self.candidate_threshold
        index = is_candidate.flatten().nonzero().squeeze(1)  # (C,) into (B, L, K)
        per_image = scores.shape[1] * scores.shape[2]
        ranking = scores.flatten()[index]
        if len(index) > self.pre_nms_topk:
            level = locations.level[index % per_image // scores.shape[2]]
            group = index // per_image * len(head.level_sizes) + level
            keep = _best_of_groups(group, ranking, self.pre_nms_topk)
            index, ranking = index[keep], ranking[keep]
        image, location = index // per_image, index % per_image // scores.shape[2]
        label = index % scores.shape[2]
        ltrb = head.ltrb[image, location].float() * locations.stride[location, None]
        boxes = boxes_from_ltrb(locations.points[location], ltrb)
        if self.clip_before_nms:
            boxes = clip_boxes_to_image(boxes, dense.image_size)
        found = Candidates(image, boxes, head.final_scores(ranking), label, location)
        group = image if self.class_agnostic_nms else image * scores.shape[2] + label
        keep = _nms(boxes, found.scores, group, self.nms_threshold).sort().values
        found = found[keep[by_group(image[keep], found.scores[keep])]]
        rank, first = ranks(found.image)
        last = (first + self.max_detections - 1).clamp(max=len(rank) - 1)
        return found, (rank < self.max_detections) | (found.scores >= found.scores[last])

    def to_original(
        self,
        found: Candidates,
        infos: Sequence[ImageInfo],
        keep: Bool[Tensor, " c"] | None = None,
    ) -> Candidates:
        """Those to keep in pixels of the original, clipped; without boxes outside of the image."""
        sizes = [(info.original_size, info.size) for info in infos]
        table = [(w / width, h / height, w, h) for (h, w), (height, width) in sizes]
        factors = to_device(table, found.boxes)[found.image]  # (C, 4)
        scale, limit = factors[:, :2].repeat(1, 2), factors[:, 2:].repeat(1, 2)
        boxes = torch.minimum((found.boxes * scale).clamp(min=0), limit)
        inside = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        keep = inside if keep is None else keep & inside
        return replace(found, boxes=boxes)[keep.nonzero().squeeze(1)]

    def paste(
        self,
        logits: Float[Tensor, "d h4 w4"],
        image: Int64[Tensor, " d"],
        infos: Sequence[ImageInfo],
        stride: int,
    ) -> Bool[Tensor, "d h w"]:
        """Masks of the original size: upsampled, cropped to the image, resized, thresholded.

        Each is in the top left corner of a map of the largest original size; ``image`` is the index
        of its image.
        """
        sizes, originals = [i.size for i in infos], [i.original_size for i in infos]
        how = (self.mask_threshold, self.mask_interpolation)
        return paste_batch(logits.float(), image, stride, sizes, originals, *how)


def _best_of_groups(
    group: Int64[Tensor, " c"], scores: Float[Tensor, " c"], count: int
) -> Int64[Tensor, " k"]:
    """Indices, in ascending order, of the best of each group; groups are consecutive."""
    order = by_group(group, scores)
    rank, _ = ranks(group)
    return order[(rank < count).nonzero().squeeze(1)].sort().values


def _nms(
    boxes: Float[Tensor, "c 4"],
    scores: Float[Tensor, " c"],
    group: Int64[Tensor, " c"],
    threshold: float,
) -> Int64[Tensor, " k"]:
    """Indices of the boxes that NMS inside each group leaves."""
    if len(boxes) == 0:
        return group
    # In float64, boxes that are moved apart keep their overlaps.
    boxes = boxes.double() - boxes.amin()
    if is_asynchronous(boxes):  # batched_nms waits once per group if there are many boxes
        moved = boxes + (group * (boxes.amax() + 1))[:, None]
        kept: Tensor = nms(moved, scores.double(), threshold)
    else:
        kept = batched_nms(boxes, scores.double(), group, threshold)
    return kept


def postprocess_arguments(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of :class:`PostProcess` in a checkpoint's recipe of any version.

    In a recipe without ``candidate_threshold``, ``score_threshold`` is what that option is now:
    a threshold of class score x centerness.
    """
    arguments = dict(recipe)
    if "candidate_threshold" not in arguments and "score_threshold" in arguments:
        arguments["candidate_threshold"] = arguments.pop("score_threshold")
    return arguments
