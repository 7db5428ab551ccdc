"""Drawing instances into images: masks, boxes, names, scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from condseg.inference import ColorBy
from condseg.inference.colors import NO_KEY, Color, Rectangle, key_color, neighbour_colors
from condseg.inference.labels import NO_OWNER, Label, draw_labels
from condseg.structures import Detections

Image = NDArray[np.uint8]
SHOWN_SIDE = 1280


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
    color_by: ColorBy = "instance",
    tracks: Sequence[int] | NDArray[np.int64] | None = None,
) -> Image:
    """Draws detections into a copy of an image.

    Large instances are drawn first, small ones on top. Labels are inside the image, do not
    overlap, and cover as little of other instances as possible, see
    :func:`condseg.inference.labels.draw_labels`. Objects smaller than :attr:`Style.small` have
    neither label nor box.

    Args:
        image: (H, W, 3) RGB, 0..255.
        detections: in this image's pixels.
        names: of class k at position k.
        score_threshold: min score of what is drawn.
        scale: factor by which the image is enlarged first, see :func:`legible_scale`.
        color_by: "class", the same color in all images; "instance", other than its neighbours';
            or "track", the same color in all frames, whose number the label has too.
        tracks: (D,) number of each object in a video, from 1; 0 for none.

    Returns:
        (scale * H, scale * W, 3) RGB.

    Raises:
        ValueError: the masks are not of the image's size, ``color_by`` is unknown, or "track"
            without ``tracks``.
    """
    if color_by not in get_args(ColorBy):
        raise ValueError(f"color_by is {color_by!r}; {', '.join(get_args(ColorBy))} are allowed")
    if color_by == "track" and tracks is None:
        raise ValueError("color_by is 'track', but the instances have no tracks; frames have them")
    height, width = image.shape[:2]
    if detections.masks.shape[1:] != (height, width):
        raise ValueError(
            f"masks are {' x '.join(map(str, detections.masks.shape[1:]))} (height x width), the "
            f"image is {height} x {width}"
        )
    shown = detections.above(score_threshold)
    if len(shown) and int(shown.labels.max()) >= len(names):
        raise ValueError(
            f"names has {len(names)} entries; there is an instance of class "
            f"{int(shown.labels.max())}, which needs one"
        )
    masks, boxes = shown.masks.cpu().numpy(), shown.boxes.cpu().numpy()
    labels = shown.labels.tolist()
    texts = [f"{names[k]} {s:.2f}" for k, s in zip(labels, shown.scores.tolist(), strict=True)]
    numbers: list[int] = []
    if tracks is not None:
        keep = (detections.scores >= score_threshold).cpu().numpy()
        numbers = np.asarray(tracks)[keep].tolist()
        texts = [f"#{n} {text}" if n else text for n, text in zip(numbers, texts, strict=True)]
    if scale > 1:
        size = (scale * width, scale * height)
        image = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
    canvas = np.ascontiguousarray(image).copy()
    style = Style.of(*canvas.shape[:2])
    rectangles = [_rectangle(box * scale, canvas) for box in boxes]
    if color_by == "class":
        colors = [key_color(k) for k in labels]
    elif color_by == "track":
        colors = [key_color(n - 1) if n else NO_KEY for n in numbers]
    else:
        colors = neighbour_colors(rectangles, reach=2 * style.line)
    sides = [max(x2 - x1, y2 - y1) for x1, y1, x2, y2 in rectangles]
    owner = np.full(canvas.shape[:2], NO_OWNER, dtype=np.int32)
    for i in sorted(range(len(masks)), key=lambda i: -sides[i]):
        line = style.line if sides[i] >= style.small else max(1, style.line // 2)
        top, left, inside = _enlarge(masks[i], scale)
        if not inside.size:
            continue
        _draw_mask(canvas, top, left, inside, colors[i], line, style.opacity)
        owner[top : top + inside.shape[0], left : left + inside.shape[1]][inside] = i
    large = [i for i, side in enumerate(sides) if side >= style.small]
    for i in large:
        x1, y1, x2, y2 = rectangles[i]
        thin = max(1, style.line // 2)
        cv2.rectangle(canvas, (x1, y1), (x2 - 1, y2 - 1), colors[i], thin)
    named = [Label(i, rectangles[i], texts[i], colors[i]) for i in large]
    draw_labels(canvas, named, owner, style.font)
    return canvas


def legible_scale(height: int, width: int) -> int:
    """Factor by which to enlarge an image so that its labels fit: 1 from 480 pixels.

    It is lower where the sides would exceed what a JPEG may have, 65500 pixels.
    """
    factor = min(4, math.ceil(480 / min(height, width)), 65500 // max(height, width))
    return max(1, factor)


def reduced(drawing: Image) -> Image:
    """A drawing for screens: the longer side has up to ``SHOWN_SIDE`` pixels."""
    height, width = drawing.shape[:2]
    share = SHOWN_SIDE / max(height, width)
    if share >= 1:
        return drawing
    size = max(1, round(share * width)), max(1, round(share * height))
    return np.asarray(cv2.resize(drawing, size, interpolation=cv2.INTER_AREA))


def _rectangle(box: NDArray[np.float32], canvas: Image) -> Rectangle:
    height, width = canvas.shape[:2]
    x1, y1 = np.floor(box[:2]).astype(int)
    x2, y2 = np.ceil(box[2:]).astype(int)
    return max(0, int(x1)), max(0, int(y1)), min(width, int(x2)), min(height, int(y2))


def _enlarge(mask: NDArray[np.bool_], scale: int) -> tuple[int, int, NDArray[np.bool_]]:
    """Top, left and pixels of the part of the mask that is not empty, enlarged."""
    x, y, w, h = cv2.boundingRect(mask.view(np.uint8))
    part = mask[y : y + h, x : x + w]
    if scale > 1 and part.size:
        pixels = part.astype(np.uint8) * 255
        soft = cv2.resize(pixels, (w * scale, h * scale), interpolation=cv2.INTER_LINEAR)
        # Smooths the edges of the enlarged pixels but keeps lines that are one pixel wide.
        part = np.asarray(cv2.GaussianBlur(soft, (0, 0), 0.5 * scale)) > 127
    return y * scale, x * scale, part


def _draw_mask(
    canvas: Image,
    top: int,
    left: int,
    inside: NDArray[np.bool_],
    color: Color,
    line: int,
    opacity: float,
) -> None:
    """A transparent fill, and a solid contour along the edge and holes."""
    view = canvas[top : top + inside.shape[0], left : left + inside.shape[1]]
    view[inside] = (1 - opacity) * view[inside] + opacity * np.array(color)
    pixels = inside.astype(np.uint8)
    contours, _ = cv2.findContours(pixels, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, contours, -1, color, line, cv2.LINE_AA, offset=(left, top))
