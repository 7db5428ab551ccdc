"""Small pictures of numbers, composed of rows and columns: heat maps, bars, captions.

Every function gives an (H, W, 3) RGB picture, 0..255, on white.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Files

Image = NDArray[np.uint8]
Numbers = NDArray[np.floating]
Colours = Callable[[Numbers], Image]

# Okabe and Ito, "Color Universal Design" (2008).
BLUE, ORANGE, GREY, BLACK = (0, 114, 178), (213, 94, 0), (110, 110, 110), (0, 0, 0)


def sequential(low: float, high: float) -> Colours:
    """Colours from ``low`` (dark blue) over green to ``high`` (yellow): viridis."""

    def colours(values: Numbers) -> Image:
        span = max(high - low, 1e-12)
        steps = np.clip((values - low) / span * 255 + 0.5, 0, 255).astype(np.uint8)
        shape = (-1, 1)
        coloured = cv2.applyColorMap(steps.reshape(shape), cv2.COLORMAP_VIRIDIS)
        image: Image = coloured[..., ::-1].reshape(*values.shape, 3)
        return image

    return colours


def diverging(reach: float) -> Colours:
    """Colours from -reach (blue) over zero (white) to reach (orange)."""

    def colours(values: Numbers) -> Image:
        part = np.clip(values / max(reach, 1e-12), -1, 1)[..., None]
        end = np.where(part < 0, np.array(BLUE), np.array(ORANGE))
        image: Image = (255 + np.abs(part) * (end - 255.0)).astype(np.uint8)
        return image

    return colours


def heat(values: Numbers, colours: Colours, height: int, width: int) -> Image:
    """A map of (rows, columns) numbers in cells of equal size; means where there is no room."""
    for axis, room in enumerate((height, width)):
        if values.shape[axis] > room:
            parts = np.array_split(values, room, axis=axis)
            values = np.concatenate([p.mean(axis, keepdims=True) for p in parts], axis=axis)
    size = (width, height)
    image: Image = cv2.resize(colours(values), size, interpolation=cv2.INTER_NEAREST)
    return image


def caption(text: str, size: int = 13, colour: tuple[int, int, int] = BLACK) -> Image:
    """One line of text."""
    font, huge = cv2.FontFace("sans"), (1 << 14, 1 << 10)
    extent = cv2.getTextSize(huge, text, (0, 0), font, size, 400)
    canvas = blank(round(1.5 * size), max(1, extent[0] + extent[2] + 2))
    cv2.putText(canvas, text, (1, round(1.1 * size)), colour, font, size, 400)
    return canvas


def bars(values: Sequence[float], high: float, height: int, width: int) -> Image:
    """Upright bars beside each other, ``high`` reaching the top."""
    canvas = blank(height, width)
    step = width / max(len(values), 1)
    for i, value in enumerate(values):
        top = height - round(min(max(value / high, 0), 1) * (height - 1)) - 1
        canvas[top:, round(i * step + 0.1 * step) : max(1, round((i + 0.9) * step))] = BLUE
    canvas[-1] = GREY
    return canvas


def scale(colours: Colours, low: float, high: float, note: str = "", width: int = 120) -> Image:
    """A strip that says which colour is which number."""
    strip = heat(np.linspace(low, high, width)[None], colours, 12, width)
    return row(caption(f"{low:.3g}", 12), strip, caption(f"{high:.3g}  {note}", 12), gap=4)


def row(*images: Image, gap: int = 8) -> Image:
    """Pictures beside each other, level at the top."""
    height = max(i.shape[0] for i in images)
    parts = [_extend(i, height, i.shape[1] + (gap if k + 1 < len(images) else 0))
             for k, i in enumerate(images)]  # fmt: skip
    return np.hstack(parts)


def column(*images: Image, gap: int = 4) -> Image:
    """Pictures under each other, level at the left."""
    width = max(i.shape[1] for i in images)
    parts = [_extend(i, i.shape[0] + (gap if k + 1 < len(images) else 0), width)
             for k, i in enumerate(images)]  # fmt: skip
    return np.vstack(parts)


def grid(images: Sequence[Image], columns: int, gap: int = 12) -> Image:
    """Pictures row by row, in columns of one width."""
    width = max(i.shape[1] for i in images)
    cells = [_extend(i, i.shape[0], width) for i in images]
    rows = [row(*cells[i : i + columns], gap=gap) for i in range(0, len(cells), columns)]
    return column(*rows, gap=gap)


def framed(image: Image, margin: int = 12) -> Image:
    """White around it."""
    return np.pad(image, ((margin, margin), (margin, margin), (0, 0)), constant_values=255)


def fitted(image: Image, width: int) -> Image:
    """A photograph at that width."""
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    method = cv2.INTER_AREA if width < image.shape[1] else cv2.INTER_CUBIC
    resized: Image = cv2.resize(image, (width, height), interpolation=method)
    return resized


def blank(height: int, width: int) -> Image:
    return np.full((height, width, 3), 255, dtype=np.uint8)


def save(image: Image, path: Path) -> Path:
    """Write a PNG with white around it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Files.fromarray(framed(image)).save(path, optimize=True)
    return path


def _extend(image: Image, height: int, width: int) -> Image:
    missing = ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0))
    return np.pad(image, missing, constant_values=255)
