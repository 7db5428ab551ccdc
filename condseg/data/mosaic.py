"""RTMDet's augmentation: mosaics of four images, mixed in pairs, then large-scale jitter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import albumentations as A
import cv2
import numpy as np
from jaxtyping import Float32, UInt8, UInt16

from condseg.data.limits import MAX_OBJECTS
from condseg.data.transforms import compose, seed_transform
from condseg.structures import Size

GREY = 114


@dataclass(frozen=True, slots=True)
class Part:
    """An image with its objects, or several that were joined.

    Attributes:
        image: RGB.
        layers: index maps of :func:`condseg.data.masks.to_layers`.
        labels: of the objects.
        boxes: xyxy in pixels and the position of the object, of the objects without a mask.
    """

    image: UInt8[np.ndarray, "h w 3"]
    layers: UInt16[np.ndarray, "l h w"]
    labels: Sequence[int]
    boxes: Float32[np.ndarray, "n 5"]


class LargeScaleJitter(A.DualTransform):  # type: ignore[misc]
    """Resizes by a random factor, then cuts out a square or pads to it.

    Args:
        side: of the square, in pixels.
        ratio: min and max of the factor.
        fit: whether a factor of 1 fits the image into the square; otherwise it keeps its size.

    Source:
        Ghiasi et al., "Simple Copy-Paste" (CVPR 2021), section 3.1; in RTMDet padded with grey.
    """

    def __init__(self, side: int, ratio: tuple[float, float], fit: bool) -> None:
        super().__init__(p=1.0)
        self.side, self.ratio, self.fit = side, ratio, fit

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        height, width = params["shape"][:2]
        scale = self.py_random.uniform(*self.ratio)
        if self.fit:
            scale *= self.side / max(height, width)
        size = tuple(max(1, int(scale * each + 0.5)) for each in (height, width))
        corner = tuple(self.py_random.randint(0, max(each - self.side, 0)) for each in size)
        return {"size": size, "corner": corner}

    def apply(
        self, img: np.ndarray, size: Size = (1, 1), corner: Size = (0, 0), **params: Any
    ) -> np.ndarray:
        shrinks = size[0] * size[1] < img.shape[0] * img.shape[1]
        how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        return self._cut(cv2.resize(img, size[::-1], interpolation=how), corner, GREY)

    def apply_to_mask(
        self, mask: np.ndarray, size: Size = (1, 1), corner: Size = (0, 0), **params: Any
    ) -> np.ndarray:
        resized = cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        return self._cut(resized, corner, 0)

    def apply_to_bboxes(
        self, bboxes: np.ndarray, size: Size = (1, 1), corner: Size = (0, 0), **params: Any
    ) -> np.ndarray:
        moved = bboxes.copy()  # relative to the image's size
        moved[:, :4] = bboxes[:, :4] * (size[::-1] * 2) - (corner[::-1] * 2)
        moved[:, :4] /= self.side
        return moved

    def _cut(self, pixels: np.ndarray, corner: Size, value: int) -> np.ndarray:
        top, left = corner
        part = pixels[top : top + self.side, left : left + self.side]
        whole = np.full((self.side, self.side, *pixels.shape[2:]), value, pixels.dtype)
        whole[: part.shape[0], : part.shape[1]] = part
        return whole


class MosaicJitter:
    """Four images in a mosaic, large-scale jitter, colors and flip; two of these mixed.

    From the epoch ``mosaic_epochs`` on, single images with large-scale jitter, colors and flip.

    Args:
        side: of the images, in pixels.
        ratio: min and max of the jitter's factor; 1 is a mosaic of twice the side, or an image
            that fits.
        mosaic_epochs: number of epochs with mosaics.
        mixup: probability that a mosaic is mixed with another one.

    Raises:
        ValueError: a value is outside its range.

    Source:
        RTMDet (arXiv 2212.07784), section 3.3; the numbers are those of mmdetection's
        configurations. There the other images are from a cache of the last 40, and of the last 20
        mosaics, of a worker; here any images of the set, drawn by (seed, epoch, position), so that
        a resumed run trains with the same images. Up to eight are read for each.
    """

    def __init__(
        self,
        side: int = 640,
        ratio: tuple[float, float] = (0.1, 2.0),
        mosaic_epochs: int = 280,
        mixup: float = 1.0,
    ) -> None:
        if side < 32:
            raise ValueError(f"side is {side}; 32 or more is allowed")
        if not 0 < ratio[0] <= ratio[1] <= 10:
            raise ValueError(f"ratio is {list(ratio)}; 0 < min <= max <= 10 is allowed")
        if mosaic_epochs < 0:
            raise ValueError(f"mosaic_epochs is {mosaic_epochs}; 0 or more is allowed")
        if not 0 <= mixup <= 1:
            raise ValueError(f"mixup is {mixup}; 0..1 is allowed")
        self.side, self.mosaic_epochs, self.mixup = side, mosaic_epochs, mixup
        # Each channel is changed with probability 1/2.
        colors = [
            A.HueSaturationValue(*(limit if i == k else 0 for i in range(3)), p=0.5)
            for k, limit in enumerate((5, 30, 30))
        ]
        after = [*colors, A.HorizontalFlip(p=0.5)]
        self._of_mosaic = compose([LargeScaleJitter(side, ratio, fit=False), *after])
        self._of_image = compose([LargeScaleJitter(side, ratio, fit=True), *after])

    def __call__(
        self, read: Callable[[int], Part], index: int, count: int, key: tuple[int, int]
    ) -> Part:
        """The augmented image ``index``.

        Args:
            read: an image of the set.
            index: of the image.
            count: of the set's images.
            key: (seed, epoch).
        """
        if key[1] >= self.mosaic_epochs:
            return _transformed(self._of_image, read(index), *key, index)
        random = np.random.default_rng((*key, index))
        part = self._mosaic(read, index, count, random)
        part = _transformed(self._of_mosaic, part, *key, index)
        if random.random() < self.mixup:
            other = self._mosaic(read, int(random.integers(count)), count, random)
            part = mixed(part, _transformed(self._of_mosaic, other, *key, index, 1))
        return part

    def _mosaic(
        self, read: Callable[[int], Part], index: int, count: int, random: np.random.Generator
    ) -> Part:
        others = random.integers(count, size=3).tolist()
        center = (random.uniform(0.5, 1.5, size=2) * self.side).astype(int)
        parts = [read(each) for each in (index, *others)]
        return mosaic(parts, self.side, (int(center[0]), int(center[1])))


def mosaic(parts: Sequence[Part], side: int, center: Size) -> Part:
    """Four images around a point of a square of twice the side, on grey.

    Args:
        parts: the images above left, above right, below left and below right of the point. Each is
            resized to fit into a square of the side, touches the point with one corner, and is cut
            off at the border.
        side: see above.
        center: (y, x) of the point.
    """
    image = np.full((2 * side, 2 * side, 3), GREY, np.uint8)
    layers = np.zeros((max(len(part.layers) for part in parts), 2 * side, 2 * side), np.uint16)
    labels: list[int] = []
    boxes = []
    for number, part in enumerate(parts):
        part = _fitted(part, side)
        height, width = part.image.shape[:2]
        top = center[0] - (height if number < 2 else 0)
        left = center[1] - (width if number % 2 == 0 else 0)
        to = (_inside(top, height, 2 * side), _inside(left, width, 2 * side))
        of = tuple(slice(s.start - o, s.stop - o) for s, o in zip(to, (top, left), strict=True))
        image[to] = part.image[of]
        for layer, own in zip(layers, part.layers, strict=False):
            layer[to] = _numbered_from(own[of], len(labels))
        rows = part.boxes + np.array((left, top, left, top, len(labels)), np.float32)
        borders = [(s.start, s.stop) for s in to[::-1]] * 2
        rows[:, :4] = rows[:, :4].clip(*np.array(borders, np.float32).T)
        boxes.append(rows[(rows[:, 2:4] > rows[:, :2]).all(axis=1)])
        labels += part.labels
    _check_count(labels)
    return Part(image, layers, labels, np.concatenate(boxes))


def mixed(first: Part, second: Part) -> Part:
    """The mean of two images of the same size, with the objects of both."""
    image = cv2.addWeighted(first.image, 0.5, second.image, 0.5, 0)
    count = len(first.labels)
    layers = np.concatenate((first.layers, _numbered_from(second.layers, count)))
    labels = [*first.labels, *second.labels]
    _check_count(labels)
    moved = second.boxes + np.array((0, 0, 0, 0, count), np.float32)
    return Part(np.asarray(image), layers, labels, np.concatenate((first.boxes, moved)))


def _fitted(part: Part, side: int) -> Part:
    """An image resized so that its long side is ``side``."""
    height, width = part.image.shape[:2]
    scale = side / max(height, width)
    size = tuple(max(1, int(scale * each + 0.5)) for each in (width, height))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    image = np.asarray(cv2.resize(part.image, size, interpolation=how))
    nearest = [cv2.resize(x, size, interpolation=cv2.INTER_NEAREST_EXACT) for x in part.layers]
    factor = np.array((size[0] / width, size[1] / height) * 2 + (1,), np.float32)
    return Part(image, np.stack(nearest), part.labels, part.boxes * factor)


def _inside(start: int, length: int, limit: int) -> slice:
    return slice(max(start, 0), max(min(start + length, limit), 0))


def _numbered_from(layer: UInt16[np.ndarray, "..."], first: int) -> UInt16[np.ndarray, "..."]:
    """Index maps whose objects follow ``first`` others."""
    return np.where(layer > 0, layer + np.uint16(first), np.uint16(0))


def _check_count(labels: Sequence[int]) -> None:
    if len(labels) > MAX_OBJECTS:
        raise ValueError(
            f"the images of a mosaic have {len(labels)} objects together; {MAX_OBJECTS} are allowed"
        )


def _transformed(transform: A.Compose, part: Part, *key: int) -> Part:
    seed_transform(transform, *key)
    result = transform(image=part.image, masks=part.layers, bboxes=part.boxes)
    boxes = np.asarray(result["bboxes"], np.float32).reshape(-1, 5)
    return Part(result["image"], np.asarray(result["masks"]), part.labels, boxes)
