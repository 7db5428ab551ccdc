"""Detections -> COCO records, with masks as compressed run lengths."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from pycocotools import mask as rle
from torch import Tensor

from condseg.ops.device import is_asynchronous, start_copy
from condseg.ops.rle import changes, run_lengths
from condseg.structures import Category, Detections, ImageInfo, Size

Record = dict[str, Any]


def to_records(
    info: ImageInfo, detections: Detections, categories: Sequence[Category | None]
) -> list[Record]:
    """The detections of an image in COCO's results format, best first.

    Args:
        info: the image.
        detections: boxes and masks in the original image's pixels, contiguous labels.
        categories: of class k at position k; detections of a class with None are skipped.

    Returns:
        Records of ``image_id``, ``category_id``, ``score``, ``bbox`` (x, y, width, height, rounded
        to 0.01 pixels) and ``segmentation`` (compressed RLE as text).
    """
    return start_records([info], [detections], categories)()[0]


def start_records(
    infos: Sequence[ImageInfo],
    detections: Sequence[Detections],
    categories: Sequence[Category | None],
) -> Callable[[], list[list[Record]]]:
    """:func:`to_records` of several images in two steps: the result waits for the device.

    On a GPU the run lengths are computed there, and only these are copied.
    """
    counts = [len(found) for found in detections]
    if not sum(counts):
        return lambda: [[] for _ in infos]
    numbers = [
        torch.cat([getattr(found, name).detach() for found in detections])
        for name in ("boxes", "scores", "labels")
    ]
    masks = [found.masks for found in detections]
    if is_asynchronous(numbers[0]):
        sizes = [(m.shape[1], m.shape[2]) for m in masks for _ in range(len(m))]
        copies = start_copy(*numbers, changes(masks))

        def finish() -> list[list[Record]]:
            *host, positions = copies()
            return _records(infos, counts, host, _from_changes(positions, sizes), categories)

        return finish
    records = _records(infos, counts, numbers, _from_pixels(masks), categories)
    return lambda: records


def _from_pixels(masks: Sequence[Tensor]) -> Iterator[Record]:
    for mask in (mask for of_image in masks for mask in of_image.numpy()):
        yield rle.encode(np.asfortranarray(mask.view(np.uint8)))


def _from_changes(positions: Tensor, sizes: Sequence[Size]) -> Iterator[Record]:
    areas = [height * width for height, width in sizes]
    for size, runs in zip(sizes, run_lengths(positions.numpy(), areas), strict=True):
        yield rle.frPyObjects({"size": list(size), "counts": runs.tolist()}, *size)


def _records(
    infos: Sequence[ImageInfo],
    counts: Sequence[int],
    numbers: Sequence[Tensor],
    segmentations: Iterator[Record],
    categories: Sequence[Category | None],
) -> list[list[Record]]:
    boxes, scores, labels = numbers
    boxes = boxes.double()
    xywh = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)
    rows = zip(xywh.tolist(), scores.tolist(), labels.tolist(), segmentations, strict=True)
    records: list[list[Record]] = []
    for info, count in zip(infos, counts, strict=True):
        records.append([])
        for box, score, label, segmentation in itertools.islice(rows, count):
            category = categories[label]
            if category is None:
                continue
            segmentation["counts"] = segmentation["counts"].decode("ascii")
            records[-1].append(
                {
                    "image_id": info.image_id,
                    "category_id": category.id,
                    "score": score,
                    "bbox": [round(x, 2) for x in box],
                    "segmentation": segmentation,
                }
            )
    return records
