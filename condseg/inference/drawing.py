"""Drawing instances into images: masks, boxes, names, scores."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from condseg.structures import Detections

Image = NDArray[np.uint8]
Colour = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]  # x1, y1, x2, y2

# Okabe and Ito, "Color Universal Design" (2008), without black: safe for the colour-blind.
PALETTE: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
_LIGHT = PALETTE[0], PALETTE[1], PALETTE[3]  # relative luminance (WCAG 2) above 0.3


@dataclass(frozen=True, slots=True)
class Style:
    """Sizes in pixels of the drawn image.

    Attributes:
        line: width of contours and boxes.
        font: height of the labels' font.
        opacity: of a mask's fill, 0..1.
        small: objects whose longer side is below this get a thin contour and no box or label,
            which would cover them.
    """

    line: int
    font: int
    opacity: float
    small: int

    @classmethod
    def of(cls, height: int, width: int) -> Style:
        """In proportion to the image, with a min size that can be read."""
        side = math.sqrt(height * width)
        font = max(11, round(side / 40))
        return cls(line=max(1, round(side / 400)), font=font, opacity=0.4, small=2 * font)


def draw(
    image: Image,
    detections: Detections,
    names: Sequence[str],
    score_threshold: float = 0.0,
    scale: int = 1,
) -> Image:
    """Draws detections into a copy of an image.

    Neighbouring instances have different colours, whatever their class. Large instances are drawn
    first, small ones on top. Labels are inside the image and do not overlap; those of large
    objects are placed first. A label is omitted if there is no free place, if it is more than
    twice as large as its object, or if all labels would cover more than an eighth of the image.
    Objects smaller than :attr:`Style.small` have neither label nor box.

    Args:
        image: (H, W, 3) RGB, 0..255.
        detections: in this image's pixels.
        names: of class k at position k.
        score_threshold: min score of what is drawn.
        scale: factor by which the image is enlarged first, see :func:`legible_scale`.

    Returns:
        (scale * H, scale * W, 3) RGB.

    Raises:
        ValueError: the masks are not of the image's size.
    """
    height, width = image.shape[:2]
    if detections.masks.shape[1:] != (height, width):
        raise ValueError(
            f"masks are {' x '.join(map(str, detections.masks.shape[1:]))} (height x width), the "
            f"image is {height} x {width}"
        )
    shown = detections.above(score_threshold)
    masks, boxes = shown.masks.cpu().numpy(), shown.boxes.cpu().numpy()
    pairs = zip(shown.labels.tolist(), shown.scores.tolist(), strict=True)
    texts = [f"{names[k]} {score:.2f}" for k, score in pairs]
    if scale > 1:
        size = (scale * width, scale * height)
        image = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
    canvas = np.ascontiguousarray(image).copy()
    style = Style.of(*canvas.shape[:2])
    rectangles = [_rectangle(box * scale, canvas) for box in boxes]
    colours = _colours(rectangles, reach=2 * style.line)
    sides = [max(x2 - x1, y2 - y1) for x1, y1, x2, y2 in rectangles]
    for i in sorted(range(len(masks)), key=lambda i: -sides[i]):
        line = style.line if sides[i] >= style.small else max(1, style.line // 2)
        _draw_mask(canvas, masks[i], colours[i], line, style.opacity, scale)
    large = [i for i, side in enumerate(sides) if side >= style.small]
    for i in large:
        x1, y1, x2, y2 = rectangles[i]
        thin = max(1, style.line // 2)
        cv2.rectangle(canvas, (x1, y1), (x2 - 1, y2 - 1), colours[i], thin)
    _draw_labels(canvas, [(rectangles[i], texts[i], colours[i]) for i in large], style)
    return canvas


def legible_scale(height: int, width: int) -> int:
    """Factor by which to enlarge an image so that its labels fit: 1 from 480 pixels."""
    return min(4, max(1, math.ceil(480 / min(height, width))))


def _rectangle(box: NDArray[np.float32], canvas: Image) -> Rectangle:
    height, width = canvas.shape[:2]
    x1, y1 = np.floor(box[:2]).astype(int)
    x2, y2 = np.ceil(box[2:]).astype(int)
    return max(0, int(x1)), max(0, int(y1)), min(width, int(x2)), min(height, int(y2))


def _colours(rectangles: Sequence[Rectangle], reach: int) -> list[Colour]:
    """For each the colour least used among its neighbours, then least used overall."""
    corners = np.array(rectangles, dtype=np.int64).reshape(-1, 4)
    low, high = corners[:, :2] - reach, corners[:, 2:] + reach
    chosen = np.full(len(corners), -1)
    for i in range(len(corners)):
        near = ((low[i] < high[:i]) & (low[:i] < high[i])).all(axis=1)
        beside = np.bincount(chosen[:i][near], minlength=len(PALETTE))
        overall = np.bincount(chosen[:i], minlength=len(PALETTE))
        chosen[i] = np.lexsort((overall, beside))[0]
    return [PALETTE[k] for k in chosen]


def _draw_mask(
    canvas: Image, mask: NDArray[np.bool_], colour: Colour, line: int, opacity: float, scale: int
) -> None:
    """A transparent fill, and a solid contour along the edge and holes."""
    x, y, w, h = cv2.boundingRect(mask.view(np.uint8))
    if w == 0:
        return
    part = mask[y : y + h, x : x + w].astype(np.uint8)
    if scale > 1:
        soft = cv2.resize(part * 255, (w * scale, h * scale), interpolation=cv2.INTER_LINEAR)
        # Smooths the edges of the enlarged pixels but keeps lines that are one pixel wide.
        part = (cv2.GaussianBlur(soft, (0, 0), 0.5 * scale) > 127).astype(np.uint8)
    left, top = x * scale, y * scale
    view = canvas[top : top + h * scale, left : left + w * scale]
    inside = part.astype(bool)
    view[inside] = (1 - opacity) * view[inside] + opacity * np.array(colour)
    contours, _ = cv2.findContours(part, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, contours, -1, colour, line, cv2.LINE_AA, offset=(left, top))


def _draw_labels(
    canvas: Image, labels: Sequence[tuple[Rectangle, str, Colour]], style: Style
) -> None:
    font = cv2.FontFace("sans")
    height, width = canvas.shape[:2]
    high, margin = round(1.3 * style.font), round(0.3 * style.font)
    budget = height * width / 8
    taken = np.zeros((0, 4), dtype=np.int64)
    for rectangle, text, colour in sorted(labels, key=lambda label: -_area(label[0])):
        extent = cv2.getTextSize((width, height), text, (0, 0), font, style.font, 500)
        long = extent[2] + 2 * margin
        if long * high > min(budget, 2 * _area(rectangle)):
            continue
        place = _place(rectangle, long, high, (height, width), taken)
        if place is None:
            continue
        budget -= long * high
        x, y, right, bottom = place
        taken = np.vstack([taken, place])
        canvas[y:bottom, x:right] = colour
        ink = (0, 0, 0) if colour in _LIGHT else (255, 255, 255)
        baseline = (x + margin - extent[0], bottom - round(0.38 * style.font))
        cv2.putText(canvas, text, baseline, ink, font, style.font, 500)


def _place(
    box: Rectangle, width: int, height: int, image_size: tuple[int, int], taken: NDArray[np.int64]
) -> Rectangle | None:
    """The first free place: above the box, in it, below it, then beside it."""
    x1, y1, x2, y2 = box
    xs = [x1, x2 - width, (x1 + x2 - width) // 2, x2, x1 - width]
    ys = [y1 - height, y1, y2, y2 - height, (y1 + y2 - height) // 2]
    for columns in (xs[:3], xs[3:]):
        for y, x in itertools.product(ys, columns):
            left = min(max(0, x), image_size[1] - width)
            top = min(max(0, y), image_size[0] - height)
            place = (left, top, left + width, top + height)
            if left < 0 or top < 0:
                return None
            covers = (taken[:, :2] < place[2:]) & (np.array(place[:2]) < taken[:, 2:])
            if not covers.all(axis=1).any():
                return place
    return None


def _area(rectangle: Rectangle) -> int:
    x1, y1, x2, y2 = rectangle
    return (x2 - x1) * (y2 - y1)
