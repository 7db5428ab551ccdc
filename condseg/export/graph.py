"""The whole model as one graph: from uint8 images to boxes, labels, scores and masks."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condseg.export.nms import onnx_nms
from condseg.models.backbones.base import GREY
from condseg.models.condinst import CondInst
from condseg.models.postprocess import PostProcess
from condseg.ops.boxes import boxes_from_ltrb
from condseg.ops.masks import aligned_upsample
from condseg.structures import DensePredictions

STRIDE = 32
MAX_KEPT = 3840
"""Instances of an image after NMS, as many as TensorRT can sort."""
MAX_SIDE = 2**14


class Outputs(NamedTuple):
    """What the graph computes for B images: D instances, best first within each image.

    Attributes:
        boxes: (D, 4) xyxy in pixels of the images.
        labels: (D,) classes 0..K-1.
        scores: (D,) 0..1.
        image_index: (D,) image of each instance, 0..B-1, in rising order.
        masks: (D, H/4, W/4) logits of the padded images, or (D, H, W) masks.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    image_index: Tensor
    masks: Tensor


class _Candidates(NamedTuple):
    """N locations and classes of each image: (B, N), boxes (B, N, 4); no candidate: score -1."""

    scores: Tensor
    labels: Tensor
    locations: Tensor
    boxes: Tensor


class ImagesToMasks(nn.Module):
    """Network and post-process as one graph, whose shapes depend on its input's alone.

    Args:
        network: in evaluation mode.
        postprocess: its top-k per level and kind of NMS are used, its thresholds are inputs.

    Shape:
        images (B, 3, H, W) uint8 RGB of one size, () each threshold, and, with a depth encoder,
        depth (B, H, W) -> :class:`Outputs`, with a mask threshold masks, without one logits.
    """

    def __init__(self, network: CondInst, postprocess: PostProcess) -> None:
        super().__init__()
        self.network, self.postprocess = network, postprocess

    def forward(
        self,
        images: Tensor,
        score_threshold: Tensor,
        nms_threshold: Tensor,
        max_detections: Tensor,
        mask_threshold: Tensor | None = None,
        depth: Tensor | None = None,
    ) -> Outputs:
        network = self.network
        height, width = images.shape[2:]
        letterbox = network.backbone.letterbox
        side: Any = torch.sym_max(height, width)
        rows, columns = (_padded(side if letterbox else size) for size in (height, width))
        inside = (rows < height)[:, None] & (columns < width)
        pixels = _at(images, rows, columns)
        # As in FeatureExtractor.prepare: grey, or zero after the normalization.
        if letterbox:
            x = network.backbone.normalize(pixels.where(inside, GREY))
        else:
            x = network.backbone.normalize(pixels) * inside
        dense = network.dense(x, None if depth is None else _at(depth, rows, columns) * inside)
        found = self._candidates(dense, score_threshold)
        if self.postprocess.clip_before_nms:
            found = found._replace(boxes=_clipped(found.boxes, columns.shape[0], rows.shape[0]))
        boxes = _clipped(found.boxes, width, height)
        labels = torch.arange(dense.head.class_logits.shape[2], device=images.device)
        image, chosen = self._choose(found, boxes, labels, nms_threshold, max_detections)
        masks = network.mask_logits(dense, image, found.locations[image, chosen])
        if mask_threshold is not None:
            stride = network.mask_head.out_stride
            if self.postprocess.mask_interpolation == "scores":
                whole = aligned_upsample(masks.sigmoid(), stride)
            else:
                whole = F.interpolate(masks[:, None], scale_factor=stride, mode="bilinear")
                whole = whole[:, 0].sigmoid()
            masks = whole[:, :height, :width] > mask_threshold
        at = (image, chosen)
        return Outputs(boxes[at], found.labels[at], found.scores[at], image, masks)

    def _candidates(self, dense: DensePredictions, score_threshold: Tensor) -> _Candidates:
        """The best of each level, scores below the threshold replaced by -1."""
        head, where = dense.head, dense.locations
        final = head.final_scores(head.scores(slice(None)))  # (B, L, K)
        passed = final >= score_threshold
        post = self.postprocess
        if post.score_threshold is None and not post.threshold_with_centerness:
            passed = passed & (head.class_scores(slice(None)) > post.candidate_threshold)
        final = final.where(passed, -1)
        classes, first, best = final.shape[2], 0, []
        for level in final.split([h * w for h, w in head.level_sizes], dim=1):
            flat = level.flatten(1)  # (B, l K)
            count = torch.sym_min(flat.shape[1], post.pre_nms_topk)
            scores, index = flat.topk(count)
            best.append((scores, index + first))
            first = first + flat.shape[1]
        scores, index = (torch.cat(parts, dim=1) for parts in zip(*best, strict=True))  # (B, N)
        locations, labels = index // classes, index % classes
        ltrb = head.ltrb.float().gather(1, locations[..., None].expand(-1, -1, 4))  # (B, N, 4)
        points, stride = where.points[locations], where.stride[locations]
        boxes = boxes_from_ltrb(points.flatten(0, 1), (ltrb * stride[..., None]).flatten(0, 1))
        return _Candidates(scores, labels, locations, boxes.view_as(ltrb))

    def _choose(
        self,
        found: _Candidates,
        boxes: Tensor,
        labels: Tensor,
        nms_threshold: Tensor,
        max_detections: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """NMS, then the best of each image: image (D,) and candidate (D,)."""
        scores = found.scores
        by_class = scores[:, None]  # (B, 1, N)
        if not self.postprocess.class_agnostic_nms:
            by_class = by_class.where(found.labels[:, None] == labels[:, None], -1)  # (B, K, N)
        kept = onnx_nms(found.boxes, by_class, nms_threshold)  # (S, 3)
        after = torch.full_like(scores, -1)
        at = (kept[:, 0], kept[:, 2])
        after = after.index_put(at, scores[at])
        ranked, order = after.topk(torch.sym_min(after.shape[1], MAX_KEPT))  # (B, N)
        last = (max_detections.clamp(max=ranked.shape[1]) - 1).expand(ranked.shape[0], 1)
        keep = (ranked > 0) & (ranked >= ranked.gather(1, last))
        not_empty = (boxes[..., 2:] > boxes[..., :2]).all(dim=2)
        image, rank = (keep & not_empty.gather(1, order)).nonzero(as_tuple=True)
        return image, order[image, rank]


def _padded(size: int) -> Tensor:
    """0, 1, ... up to the next multiple of the stride."""
    count = torch.full((), (size + STRIDE - 1) // STRIDE, dtype=torch.int64).item()
    # A new symbol: expressions of its multiples stay short in all that follows.
    torch._check(count >= 1)
    torch._check(count <= MAX_SIDE // STRIDE)
    return torch.arange(STRIDE * count)


def _at(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The maps at these rows and columns, those outside at the edge."""
    height, width = maps.shape[-2:]
    return maps.index_select(-2, rows.clamp(max=height - 1)).index_select(
        -1, columns.clamp(max=width - 1)
    )


def _clipped(boxes: Tensor, width: int, height: int) -> Tensor:
    x, y = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
    return torch.stack((x, y), dim=-1).flatten(-2)
