"""Comparison of an exported model with PyTorch on images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from condseg.export.contract import thresholds
from condseg.export.engines import Arrays, Engine
from condseg.export.graph import STRIDE
from condseg.ops.paste import paste
from condseg.structures import Detections, ImageInfo, Size
from condseg.zoo.checkpoint import Restored

MAX_BOX, MAX_SCORE, MAX_MASK = 0.01, 1e-4, 2e-5
"""Limits of the differences: pixels of the input, score, share of all mask pixels."""
NONE, MANY = 1.0, 300
"""A score threshold without detections, and the max detections of the case with many."""


@dataclass(frozen=True, slots=True)
class Row:
    """One case of the comparison.

    Attributes:
        name: of the case.
        batch: number of images.
        size: (height, width) of the images.
        expected, found: number of detections of PyTorch and of the file.
        unmatched: detections of either that the other lacks.
        box, score: largest differences, in pixels and 0..1.
        mask: share of the mask pixels that differ.
    """

    name: str
    batch: int
    size: Size
    expected: int
    found: int
    unmatched: int
    box: float
    score: float
    mask: float

    @property
    def passed(self) -> bool:
        close = self.box <= MAX_BOX and self.score <= MAX_SCORE and self.mask <= MAX_MASK
        return close and self.unmatched == 0


def verify(
    restored: Restored, engine: Engine, photographs: Sequence[NDArray[np.uint8]]
) -> list[Row]:
    """Compares the engine's model with the network, in images of several sizes and batches.

    Args:
        restored: the model in PyTorch.
        engine: executes the file.
        photographs: three or more, (H, W, 3) RGB; they are resized.
    """
    short, long = restored.short_side, restored.max_long_side
    wide, tall = (short, min(long, short * 4 // 3)), (min(long, short * 3 // 2), short)
    odd = (short // 2 + 5, short // 2 + 38)
    post = restored.postprocess
    default = float(thresholds(restored)["score_threshold"])
    cases: list[tuple[str, int, Size, float, int]] = [
        ("one image", 1, wide, default, post.max_detections),
        ("three images", 3, tall, default, post.max_detections),
        ("small images", 3, odd, default, post.max_detections),
        ("no detection", 1, wide, NONE, post.max_detections),
        ("many detections", 1, wide, default / 4, MANY),
    ]
    rows = []
    for name, batch, size, score, limit in cases:
        images = [
            cv2.resize(photo, size[::-1], interpolation=cv2.INTER_AREA)
            for photo in photographs[:batch]
        ]
        stack = torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy())
        depth = _depth(batch, size) if restored.network.takes_depth else None
        settings = {"score_threshold": score, "max_detections": limit}
        expected = _by_pytorch(restored, stack, depth, settings)
        found = _by_engine(restored, engine, stack, depth, settings)
        rows.append(_compared(name, size, expected, found))
    return rows


def _by_pytorch(
    restored: Restored, images: Tensor, depth: Tensor | None, settings: dict[str, Any]
) -> list[Detections]:
    height, width = images.shape[2:]
    post = restored.postprocess.replaced(**settings)
    infos = [ImageInfo(i, "", (height, width), (height, width)) for i in range(len(images))]
    padding = (0, -width % STRIDE, 0, -height % STRIDE)
    depth = None if depth is None else F.pad(depth, padding)
    with torch.inference_mode():
        sizes = [(height, width)] * len(images)
        dense = restored.network(F.pad(images, padding), sizes, depth)
        found: list[Detections] = post(dense, infos, restored.network.mask_logits)
    return found


def _by_engine(
    restored: Restored,
    engine: Engine,
    images: Tensor,
    depth: Tensor | None,
    settings: dict[str, Any],
) -> list[Detections]:
    size = (images.shape[2], images.shape[3])
    inputs: Arrays = {
        "images": images.numpy(),
        "score_threshold": np.array(settings["score_threshold"], np.float32),
        "max_detections": np.array([settings["max_detections"]]),
    }
    if depth is not None:
        inputs["depth"] = depth.numpy()
    outputs = {name: torch.from_numpy(value) for name, value in engine(inputs).items()}
    masks = outputs["masks"]
    if engine.facts["masks"] == "logits":
        stride, post = int(engine.facts["mask_stride"]), restored.postprocess
        masks = paste(masks, stride, size, size, post.mask_threshold, post.mask_interpolation)
    found = []
    for image in range(len(images)):
        own = outputs["image_index"] == image
        boxes, scores, labels = (outputs[name][own] for name in ("boxes", "scores", "labels"))
        found.append(Detections(boxes, scores, labels, masks[own]))
    return found


def _depth(batch: int, size: Size) -> Tensor:
    """A slope, and a part that was not measured."""
    depth = torch.linspace(500, 1500, size[1]).repeat(batch, size[0], 1)
    depth[:, : size[0] // 4, : size[1] // 3] = 0
    return depth


def _compared(name: str, size: Size, expected: list[Detections], found: list[Detections]) -> Row:
    unmatched, box, score, differing = 0, 0.0, 0.0, 0
    pixels = max(1, sum(each.masks.numel() for each in expected))
    for ours, theirs in zip(expected, found, strict=True):
        pairs = _pairs(ours, theirs)
        unmatched += len(ours) + len(theirs) - 2 * len(pairs)
        for i, j in pairs:
            box = max(box, float((ours.boxes[i] - theirs.boxes[j]).abs().max()))
            score = max(score, float((ours.scores[i] - theirs.scores[j]).abs()))
            differing += int((ours.masks[i] ^ theirs.masks[j]).sum())
    count, other = (sum(map(len, each)) for each in (expected, found))
    return Row(name, len(expected), size, count, other, unmatched, box, score, differing / pixels)


def _pairs(ours: Detections, theirs: Detections) -> list[tuple[int, int]]:
    """Detections of the same class within half a pixel, the nearest ones."""
    if len(ours) == 0 or len(theirs) == 0:
        return []
    distance = (ours.boxes[:, None] - theirs.boxes).abs().amax(2)  # (D, D')
    distance[ours.labels[:, None] != theirs.labels] = torch.inf
    pairs = []
    for i in range(len(ours)):
        j = int(distance[i].argmin())
        if distance[i, j] <= 0.5:
            pairs.append((i, j))
            distance[:, j] = torch.inf
    return pairs


def table(rows: Sequence[Row]) -> str:
    """The comparison in Markdown."""
    lines = [
        "| case | images | size | detections | unmatched | box, px | score | mask pixels | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        height, width = row.size
        lines.append(
            f"| {row.name} | {row.batch} | {height} x {width} | {row.expected} | {row.unmatched} | "
            f"{row.box:.1e} | {row.score:.1e} | {row.mask:.1e} | "
            f"{'equal' if row.passed else 'different'} |"
        )
    return "\n".join(lines)
