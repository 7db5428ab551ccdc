"""Styles of images: the same scene as different cameras in different conditions see it."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from tabletop.colour import Array, Rng

Style = Callable[[Array, Array, Rng], Array]
"""sRGB 0..1 (H, W, 3), distance in metres (H, W), random numbers -> sRGB, which is clipped."""


def plain(image: Array, distance: Array, rng: Rng) -> Array:
    return image


def noisy(image: Array, distance: Array, rng: Rng) -> Array:
    """A dark scene at high sensitivity."""
    return image * rng.uniform(0.4, 0.7) + rng.uniform(0.08, 0.16) * rng.standard_normal(
        image.shape
    )


def blurred(image: Array, distance: Array, rng: Rng) -> Array:
    """Out of focus."""
    blur = rng.uniform(1.2, 2.2) * image.shape[1] / 320
    return np.asarray(cv2.GaussianBlur(image, (0, 0), blur))


def negative(image: Array, distance: Array, rng: Rng) -> Array:
    return 1 - image


def foggy(image: Array, distance: Array, rng: Rng) -> Array:
    clear = np.exp(-rng.uniform(0.8, 1.6) * (distance / distance.min() - 1))[..., None]
    return np.asarray(image * clear + rng.uniform(0.7, 0.9) * (1 - clear))


def monochrome(image: Array, distance: Array, rng: Rng) -> Array:
    """Grey, with the contrast of a graphic film."""
    grey = image @ np.array([0.21, 0.72, 0.07])
    steep = 1 / (1 + np.exp(-rng.uniform(6, 10) * (grey - np.median(grey))))
    return np.repeat(steep[..., None], 3, 2)


def tinted(image: Array, distance: Array, rng: Rng) -> Array:
    """Light of one colour."""
    colour = rng.permutation([1.0, rng.uniform(0.1, 0.6), rng.uniform(0.1, 0.4)])
    return np.asarray(image * colour)


def false_colours(image: Array, distance: Array, rng: Rng) -> Array:
    """Channels exchanged, one of them inverted."""
    mixed = image[..., rng.permutation(3)].copy()
    mixed[..., 0] = 1 - mixed[..., 0]
    return mixed


STYLES: tuple[Style, ...] = (
    plain, noisy, blurred, negative, foggy, monochrome, tinted, false_colours,
)  # fmt: skip


def apply(style: int, image: Array, depth: Array, rng: Rng) -> Array:
    """The image (H, W, 3) uint8 in a style; depth (H, W) in millimetres."""
    if style == 0:
        return image
    styled = STYLES[style](image / 255.0, depth / 1000.0, rng)
    return np.asarray(np.clip(np.rint(styled * 255), 0, 255).astype(np.uint8))
