"""Places and draws the labels of instances."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from condseg.inference.colors import Color, Rectangle, ink

NO_OWNER = -1


class Label(NamedTuple):
    """The label of an instance.

    Attributes:
        instance: its number in the map of owners.
        box: of the instance.
        text: what is written.
        color: of the background.
    """

    instance: int
    box: Rectangle
    text: str
    color: Color


def draw_labels(
    canvas: NDArray[np.uint8], labels: Sequence[Label], owner: NDArray[np.int32], height: int
) -> None:
    """Draws labels of a font of this height, those of large instances first.

    A label is omitted if there is no place for it, if it is more than twice as large as its
    instance, or if all labels would cover more than an eighth of the image.

    Args:
        canvas: (H, W, 3), drawn into.
        labels: of some instances.
        owner: (H, W) the instance that is seen at each pixel, or ``NO_OWNER``.
        height: of the font, in pixels.
    """
    font = cv2.FontFace("sans")
    size = canvas.shape[1], canvas.shape[0]
    high, margin = round(1.3 * height), round(0.3 * height)
    budget = size[0] * size[1] / 8
    taken = np.zeros((0, 4), dtype=np.int64)
    for label in sorted(labels, key=lambda label: -_area(label.box)):
        extent = cv2.getTextSize(size, label.text, (0, 0), font, height, 500)
        long = extent[2] + 2 * margin
        if long * high > min(budget, 2 * _area(label.box)):
            continue
        place = find_place(label.box, (high, long), owner, label.instance, taken)
        if place is None:
            continue
        budget -= long * high
        x, y, right, bottom = place
        taken = np.vstack([taken, place])
        canvas[y:bottom, x:right] = label.color
        baseline = (x + margin - extent[0], bottom - round(0.38 * height))
        cv2.putText(canvas, label.text, baseline, ink(label.color), font, height, 500)


def find_place(
    box: Rectangle,
    size: tuple[int, int],
    owner: NDArray[np.int32],
    instance: int,
    taken: NDArray[np.int64],
) -> Rectangle | None:
    """The first place of which other instances own up to a tenth, else that of the least.

    The order is: above the box, in it, below it, then beside it; no place is on another label. A
    place outside the box of which other instances own more than half would be read as theirs, and
    is not used.

    Args:
        box: of the instance.
        size: (height, width) of the label.
        owner: (H, W) the instance that is seen at each pixel.
        instance: the label's, in ``owner``.
        taken: (N, 4) places of other labels.
    """
    best, least = None, size[0] * size[1] + 1
    for place in _places(box, size, owner.shape):
        if _overlaps(taken, place).any():
            continue
        x1, y1, x2, y2 = place
        below = owner[y1:y2, x1:x2]
        covered = int(((below != NO_OWNER) & (below != instance)).sum())
        outside = not _overlaps(np.array([box]), place).any()
        if 10 * covered <= size[0] * size[1]:
            return place
        if covered < least and not (outside and 2 * covered > size[0] * size[1]):
            best, least = place, covered
    return best


def _places(
    box: Rectangle, size: tuple[int, int], image_size: tuple[int, ...]
) -> Iterator[Rectangle]:
    """Places in the image, in the order of preference."""
    x1, y1, x2, y2 = box
    height, width = size
    if height > image_size[0] or width > image_size[1]:
        return
    xs = [x1, x2 - width, (x1 + x2 - width) // 2]
    ys = [y1, y2 - height, (y1 + y2 - height) // 2]
    over = itertools.product((y1 - height, y1, y2, *ys[1:]), xs)
    beside = itertools.product(ys, (x2, x1 - width))  # not at a corner, which others share
    for y, x in itertools.chain(over, beside):
        left = min(max(0, x), image_size[1] - width)
        top = min(max(0, y), image_size[0] - height)
        yield left, top, left + width, top + height


def _overlaps(rectangles: NDArray[np.int64], other: Rectangle) -> NDArray[np.bool_]:
    start, end = np.array(other[:2]), np.array(other[2:])
    overlaps = (rectangles[:, :2] < end) & (start < rectangles[:, 2:])  # (N, 2) by axis
    return overlaps[:, 0] & overlaps[:, 1]


def _area(rectangle: Rectangle) -> int:
    x1, y1, x2, y2 = rectangle
    return (x2 - x1) * (y2 - y1)
