"""COCO segmentations: checked, decoded, and drawn into index maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, UInt16
from pycocotools import mask as coco_mask

from condseg.data.categories import short
from condseg.data.limits import MAX_OBJECTS, MAX_OUTLINE, MAX_PIXELS
from condseg.structures import Size

Segmentation = list[list[float | int]] | dict[str, Any]
"""Polygons (x, y, x, y, ...) in pixels, or compressed RLE ``{"size": (h, w), "counts": ...}``."""


def check_segmentation(value: object, size: Size) -> tuple[Segmentation, bool]:
    """Checks a segmentation of the json, and compresses an uncompressed RLE.

    Args:
        value: polygons or RLE of any kind.
        size: (height, width) of its image.

    Returns:
        The segmentation, and whether a part of it is outside the image (decoding clips it).

    Raises:
        ValueError: with the value and what is allowed; the caller adds file and id.
    """
    if isinstance(value, dict):
        return _check_rle(value, size), False
    if not isinstance(value, list) or not value:
        raise ValueError(
            f"segmentation is {short(value)}; polygons or RLE are required to learn masks "
            "(data.supervision mixed learns objects without one from their bbox)"
        )
    outside = [_check_polygon(polygon, size) for polygon in value]
    return value, any(outside)


def _check_polygon(polygon: object, size: Size) -> bool:
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        raise ValueError(
            f"segmentation has the polygon {short(polygon)}; allowed are lists x, y, x, y, ... "
            "of at least three points"
        )
    try:
        finite = math.isfinite(sum(polygon))
    except (TypeError, OverflowError):
        finite = False
    if not finite:
        raise ValueError(
            f"segmentation has the polygon {short(polygon)}; allowed are finite numbers"
        )
    (height, width), xs, ys = size, polygon[::2], polygon[1::2]
    left, right, top, bottom = min(xs), max(xs), min(ys), max(ys)
    distance = None
    if right < 0 or bottom < 0 or left > width or top > height:
        distance = "completely"
    elif left < -width or right > 2 * width or top < -height or bottom > 2 * height:
        distance = "more than one image size"
    if distance:
        raise ValueError(
            f"segmentation has a polygon at x {short(left)}..{short(right)}, y {short(top)}.."
            f"{short(bottom)}, {distance} outside the image of {height}x{width} (height x width)"
        )
    if len(xs) * max(right - left, bottom - top) > MAX_OUTLINE:  # else it cannot be as long
        points = np.array([*polygon, *polygon[:2]], dtype=np.float64).reshape(-1, 2)
        outline = np.abs(np.diff(points, axis=0)).max(axis=1).sum()
        if outline > MAX_OUTLINE:
            raise ValueError(
                f"segmentation has a polygon with an outline of {outline:.0f} pixels; allowed are "
                f"up to {MAX_OUTLINE}"
            )
    return bool(left < 0 or top < 0 or right > width or bottom > height)


def _check_rle(value: dict[str, Any], size: Size) -> dict[str, Any]:
    counts, pixels = value.get("counts"), size[0] * size[1]
    if not isinstance(value.get("size"), list | tuple) or tuple(value["size"]) != size:
        raise ValueError(
            f"segmentation has the RLE size {short(value.get('size'))}; its image has "
            f"{list(size)} (height, width)"
        )
    if isinstance(counts, str) and counts.isascii():
        lengths = _run_lengths(counts)
    elif isinstance(counts, list) and all(type(c) is int and abs(c) <= MAX_PIXELS for c in counts):
        lengths = np.asarray(counts, dtype=np.int64)
    else:
        raise ValueError(
            f"segmentation has the RLE counts {short(counts)}; allowed are ASCII characters or "
            f"integers 0..{pixels}"
        )
    # Each of them too, for the sum of very many can overflow.
    if lengths.min(initial=0) < 0 or lengths.max(initial=0) > pixels or lengths.sum() != pixels:
        raise ValueError(
            f"segmentation has RLE counts of {lengths.sum()} pixels in total (shortest run "
            f"{lengths.min(initial=0)}); its image has {pixels}"
        )
    if isinstance(counts, list):
        return dict(coco_mask.frPyObjects({"size": list(size), "counts": counts}, *size))
    return {"size": list(size), "counts": counts}


def _run_lengths(counts: str | bytes) -> np.ndarray:
    """Run lengths of COCO's compressed RLE, of which pycocotools decodes up to six characters.

    Each number is a sequence of characters 48 + bits, low bits first: five bits of the value, a
    sixth that is set if more follow; the fifth bit of the last one is the sign. From the fourth
    number on, it is the difference from the number before the previous one.
    """
    invalid = f"segmentation has the RLE counts {short(counts)}, which are invalid"
    counts = counts.encode() if isinstance(counts, str) else counts
    bits = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - 48
    if len(bits) == 0 or bits.min() < 0 or bits.max() > 63 or bits[-1] & 32:
        raise ValueError(invalid)
    last = np.flatnonzero(bits & 32 == 0)
    first = np.concatenate(([0], last[:-1] + 1))
    place = 5 * (np.arange(len(bits)) - np.repeat(first, last - first + 1))
    if place.max() > 25:
        raise ValueError(invalid)
    numbers = np.add.reduceat((bits & 31) << place, first)
    numbers -= np.where(bits[last] & 16, np.int64(32) << place[last], 0)
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers


def compressed(segmentation: Segmentation, size: Size) -> dict[str, Any]:
    """The compressed RLE of a checked segmentation."""
    if isinstance(segmentation, dict):
        return segmentation
    return dict(coco_mask.merge(coco_mask.frPyObjects(segmentation, *size)))


def decode(segmentation: Segmentation, size: Size) -> Bool[np.ndarray, "h w"]:
    """The mask of a checked segmentation, equal to pycocotools' (whose decode is slower)."""
    lengths = _run_lengths(compressed(segmentation, size)["counts"])
    runs = np.arange(len(lengths)) % 2 == 1  # background first, down the columns
    return np.repeat(runs, lengths).reshape(size[::-1]).T


def to_layers(
    segmentations: Sequence[Segmentation | None], size: Size
) -> UInt16[np.ndarray, "layers h w"]:
    """Draws objects into index maps, of which overlapping objects need different ones.

    The pixels of object n (from 0) are n + 1, the background is 0. So transforms process about
    two maps instead of N masks, and each pixel keeps the index of its object.

    Args:
        segmentations: N checked segmentations, at most MAX_OBJECTS; None is not drawn.
        size: (height, width) of their image.

    Returns:
        At least one map; zeros if there are no objects.
    """
    assert len(segmentations) <= MAX_OBJECTS
    layers = [np.zeros(size, dtype=np.uint16)]
    for index, segmentation in enumerate(segmentations, start=1):
        if segmentation is None:
            continue
        mask = decode(segmentation, size)
        box = _bounds(mask)
        if box is None:
            continue
        part = mask[box]
        layer = next((one for one in layers if not one[box][part].any()), None)
        if layer is None:
            layer = np.zeros(size, dtype=np.uint16)
            layers.append(layer)
        layer[box][part] = index
    return np.stack(layers)


def from_layers(
    layers: UInt16[np.ndarray, "layers h w"], count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The objects of transformed index maps.

    Args:
        layers: index maps of :func:`to_layers`.
        count: number of objects drawn.

    Returns:
        Indices (N,) of the objects with a pixel left, ascending, their masks (N, H, W) and the
        masks' boxes (N, 4) xyxy, right and bottom edges exclusive.
    """
    drawn = [layer for layer in layers if layer.any()]
    indices: list[int] = []
    masks = np.empty((count, *layers.shape[1:]), dtype=bool)
    boxes = np.zeros((count, 4), dtype=np.float32)
    for index in range(count):
        n = len(indices)
        for layer in drawn:  # one of them has the object
            np.equal(layer, index + 1, out=masks[n])
            bounds = _bounds(masks[n])
            if bounds is not None:
                rows, columns = bounds
                boxes[n] = columns.start, rows.start, columns.stop, rows.stop
                indices.append(index)
                break
    n = len(indices)
    return np.array(indices, dtype=np.int64), masks[:n], boxes[:n]


def _bounds(mask: np.ndarray) -> tuple[slice, slice] | None:
    if not mask.flags.c_contiguous:  # down the columns, as of decode
        bounds = _bounds(mask.T)
        return bounds and bounds[::-1]
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    return (slice(y, y + height), slice(x, x + width)) if width else None
