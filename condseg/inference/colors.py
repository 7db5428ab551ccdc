"""Colors of drawn instances."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Color = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]  # x1, y1, x2, y2

# Okabe and Ito, "Color Universal Design" (2008), without black: safe for the colour-blind.
PALETTE: tuple[Color, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
NO_KEY: Color = (128, 128, 128)
"""Of an instance without a track."""


def key_color(key: int) -> Color:
    """The color of a class or a track: the palette, then darker, then lighter; then again."""
    shade = key // len(PALETTE) % 3
    weight, target = ((0.0, 0), (0.4, 0), (0.5, 255))[shade]
    r, g, b = (round((1 - weight) * c + weight * target) for c in PALETTE[key % len(PALETTE)])
    return r, g, b


def neighbour_colors(rectangles: Sequence[Rectangle], reach: int) -> list[Color]:
    """For each the color least used among its neighbours, then least used overall.

    Args:
        rectangles: of the instances.
        reach: those with fewer pixels between them than twice this are neighbours.
    """
    corners = np.array(rectangles, dtype=np.int64).reshape(-1, 4)
    low, high = corners[:, :2] - reach, corners[:, 2:] + reach
    chosen = np.full(len(corners), -1)
    for i in range(len(corners)):
        near = ((low[i] < high[:i]) & (low[:i] < high[i])).all(axis=1)
        beside = np.bincount(chosen[:i][near], minlength=len(PALETTE))
        overall = np.bincount(chosen[:i], minlength=len(PALETTE))
        chosen[i] = np.lexsort((overall, beside))[0]
    return [PALETTE[k] for k in chosen]


def ink(color: Color) -> Color:
    """Black or white, whichever can be read on the color (relative luminance of WCAG 2)."""
    linear = [(c / 255) ** 2.2 for c in color]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if luminance > 0.3 else (255, 255, 255)
