"""Transforms of images with their masks, boxes and depth, by albumentations."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import Any, Literal

import cv2
import numpy as np

# Otherwise albumentations checks online for a newer version at every import.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
import albumentations as A

from condseg.structures import Size

Flip = Literal["none", "horizontal", "both"]
Sampling = Literal["choice", "range"]

# Nearest pixel, like masks: the mean of two depths is no depth.
_DEPTH = {"depth": "mask"}


def resized(size: Size, short_side: int, max_long_side: int) -> Size:
    """The size with the given short side, reduced where the long side exceeds its maximum.

    s = min(short_side / min(h, w), max_long_side / max(h, w)); (int(s h + 0.5), int(s w + 0.5))

    Source: detectron2's ResizeShortestEdge, as used by the official CondInst.
    """
    scale = short_side / min(size)
    scale *= min(1.0, max_long_side / (scale * max(size)))
    height, width = (max(1, int(scale * side + 0.5)) for side in size)
    return height, width


class ResizeShortSide(A.DualTransform):  # type: ignore[misc]
    """Resizes the short side to one of several lengths, with a maximum of the long side.

    Images are reduced by area (no aliasing) and enlarged bilinearly; masks and depth use the
    nearest pixel with aligned pixel centres, so that they stay aligned with the image.
    """

    def __init__(
        self, short_sides: Sequence[int], max_long_side: int, sampling: Sampling = "choice"
    ) -> None:
        super().__init__(p=1.0)
        self.short_sides = tuple(short_sides)
        self.max_long_side = max_long_side
        self.sampling = sampling

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        short_side = self.short_sides[0]
        if self.sampling == "range":
            short_side = self.py_random.randint(min(self.short_sides), max(self.short_sides))
        elif len(self.short_sides) > 1:
            short_side = self.py_random.choice(self.short_sides)
        height, width = params["shape"][:2]
        return {"size": resized((height, width), short_side, self.max_long_side)}

    def apply(self, img: np.ndarray, size: Size = (1, 1), **params: Any) -> np.ndarray:
        if img.shape[:2] == size:
            return img
        shrinks = size[0] * size[1] < img.shape[0] * img.shape[1]
        interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        return np.asarray(cv2.resize(img, size[::-1], interpolation=interpolation))

    def apply_to_mask(self, mask: np.ndarray, size: Size = (1, 1), **params: Any) -> np.ndarray:
        return np.asarray(cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT))

    def apply_to_bboxes(self, bboxes: np.ndarray, **params: Any) -> np.ndarray:
        return bboxes  # relative to the image size


def resize_transform(short_side: int, max_long_side: int) -> A.Compose:
    """The transform of evaluation and prediction: ``transform(image=image)["image"]``.

    Raises:
        ValueError: a length is below 1, or the maximum below the short side.
    """
    check_sides((short_side,), max_long_side)
    return compose([ResizeShortSide((short_side,), max_long_side)])


def train_transform(
    short_sides: Sequence[int] = (640, 672, 704, 736, 768, 800),
    max_long_side: int = 1333,
    sampling: Sampling = "choice",
    flip: Flip = "horizontal",
    crop: float = 0.0,
    color_jitter: float = 0.0,
) -> A.Compose:
    """The transform of training: crop, resize, flip, colour jitter.

    Args as of :class:`condseg.data.datamodule.DataModule`.

    Raises:
        ValueError: a value is outside its range.
    """
    check_sides(short_sides, max_long_side)
    if not 0 <= crop < 0.5:
        raise ValueError(f"crop is {crop}; allowed is 0 <= crop < 0.5")
    if not 0 <= color_jitter <= 1:
        raise ValueError(f"color_jitter is {color_jitter}; allowed is 0..1")
    steps: list[A.BasicTransform] = []
    if crop:
        steps.append(A.RandomCropFromBorders(crop, crop, crop, crop, p=0.5))
    steps.append(ResizeShortSide(short_sides, max_long_side, sampling))
    if flip != "none":
        steps.append(A.HorizontalFlip(p=0.5))
    if flip == "both":
        steps.append(A.VerticalFlip(p=0.5))
    if color_jitter:
        span = (1 - color_jitter, 1 + color_jitter)
        steps.append(A.ColorJitter(span, span, span, (-color_jitter / 10, color_jitter / 10)))
    return compose(steps)


def compose(steps: list[A.BasicTransform]) -> A.Compose:
    """Boxes are xyxy in pixels, then any values; boxes below 1 pixel wide or high are dropped."""
    boxes = A.BboxParams("pascal_voc", label_fields=[], min_width=1, min_height=1)
    return A.Compose(steps, bbox_params=boxes, additional_targets=_DEPTH)


def check_sides(short_sides: Sequence[int], max_long_side: int) -> None:
    """Raises ValueError unless 1 <= short side <= max_long_side for each short side."""
    if not short_sides or min(short_sides) < 1:
        raise ValueError(f"short_sides are {tuple(short_sides)}; allowed are lengths >= 1")
    if max(short_sides) > max_long_side:
        raise ValueError(
            f"max_long_side is {max_long_side}; allowed is >= {max(short_sides)}, the longest "
            "short side"
        )


def seed_transform(transform: A.Compose, *key: int) -> None:
    """Seeds the next call of ``transform`` by ``key``.

    All steps draw from one generator; albumentations' own ``set_random_seed`` gives each step
    the same draws, so that flip and scale are correlated.
    """
    generator = np.random.default_rng(key)
    transform.set_random_state(generator, random.Random(int(generator.integers(2**62))))
