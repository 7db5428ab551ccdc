"""Runs a model exported by condseg with onnxruntime, numpy and Pillow alone; made to be copied.

python runner.py model.onnx street.jpg --score 0.5 --output street_instances.png

In Python: ``found = Model("model.onnx")(Image.open("street.jpg"))``, then ``found.boxes``, ...
"""

from __future__ import annotations

import argparse
import json
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageOps

Array = np.ndarray[Any, Any]


class Found(NamedTuple):
    """The instances of one image in its own pixels, best first.

    Attributes:
        boxes: (D, 4) x1, y1, x2, y2.
        labels: (D,) 0..K-1.
        scores: (D,) 0..1.
        masks: (D, H, W) bool.
        names: the D classes.
    """

    boxes: Array
    labels: Array
    scores: Array
    masks: Array
    names: list[str]


class Model:
    """A model of one file, written by ``condseg export --format onnx``.

    Args:
        path: the file.
        providers: of onnxruntime, such as ``["CUDAExecutionProvider"]``; by default the CPU.
    """

    def __init__(self, path: str, providers: list[str] | None = None) -> None:
        import onnxruntime

        providers = providers or ["CPUExecutionProvider"]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; it warns of the thresholds' defaults
        self.session = onnxruntime.InferenceSession(path, options, providers=providers)
        facts = self.session.get_modelmeta().custom_metadata_map
        if facts.get("format") != "1":
            raise ValueError(f"{path}: its format is {facts.get('format')}; 1 is supported")
        if "depth" in (value.name for value in self.session.get_inputs()):
            raise ValueError(f"{path}: takes depth maps, which this file does not read")
        self.facts = facts
        self.thresholds = json.loads(facts["thresholds"])
        self.names = [entry["name"] for entry in json.loads(facts["classes"])]

    def __call__(self, image: Image.Image, **thresholds: float) -> Found:
        """The instances of an image.

        Args:
            image: turned upright if it is from a camera.
            thresholds: ``score_threshold``, ``nms_threshold``, ``max_detections``,
                ``mask_threshold``; by default those of the training.
        """
        pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        height, width = pixels.shape[:2]
        short, long = int(self.facts["short_side"]), int(self.facts["max_long_side"])
        scale = min(short / min(height, width), long / max(height, width))
        size = (max(1, int(scale * height + 0.5)), max(1, int(scale * width + 0.5)))
        small = resize(pixels, size)
        threshold = thresholds.pop("mask_threshold", self.thresholds["mask_threshold"])
        inputs: dict[str, Array] = {"images": small.transpose(2, 0, 1)[None]}
        for name, value in thresholds.items():
            kind = np.int64 if name == "max_detections" else np.float32
            inputs[name] = np.array([value] if name == "max_detections" else value, kind)
        boxes, labels, scores, _, masks = self.session.run(None, inputs)
        boxes = boxes * np.tile(np.array([width / size[1], height / size[0]], np.float32), 2)
        if self.facts["masks"] == "logits":
            of_scores = self.facts["mask_interpolation"] == "scores"
            stride = int(self.facts["mask_stride"])
            masks = enlarge(masks, stride, size, (height, width), threshold, of_scores)
        return Found(boxes, labels, scores, masks, [self.names[k] for k in labels])


def resize(pixels: Array, size: tuple[int, int]) -> Array:
    """An image (H, W, 3) of another size: averaged if smaller, bilinear if larger, as in training.

    OpenCV's arithmetic: float32 for areas, integers of 11 bits for bilinear weights.
    """
    if pixels.shape[:2] == size:
        return pixels
    if size[0] * size[1] < pixels.shape[0] * pixels.shape[1]:
        rows, columns = (_areas(old, new) for old, new in zip(pixels.shape, size))  # noqa: B905
        mixed = np.tensordot(rows, pixels.astype(np.float32), 1)  # (h, W, 3)
        means = np.einsum("wv,hvc->hwc", columns, mixed, optimize=True)
        halved = pixels.shape[:2] == (2 * size[0], 2 * size[1])  # of four pixels, 0.5 is rounded up
        rounded = np.floor(means + 0.5) if halved else np.rint(means)
        return np.asarray(rounded, np.uint8)
    (top, bottom, by_row), (left, right, by_column) = (
        _neighbors(old, new)
        for old, new in zip(pixels.shape, size)  # noqa: B905
    )
    wide = pixels.astype(np.int64)
    a, b = by_column[:, None], 2048 - by_column[:, None]
    mixed = (wide[:, left] * b + wide[:, right] * a) >> 4
    a, b = by_row[:, None, None], 2048 - by_row[:, None, None]
    larger = ((mixed[top] * b >> 16) + (mixed[bottom] * a >> 16) + 2) >> 2
    return np.asarray(larger, np.uint8)


def _areas(old: int, new: int) -> Array:
    """(new, old) share of each pixel in each of the smaller image."""
    edges = np.arange(new + 1) * (old / new)
    first, last = edges[:-1, None], edges[1:, None]
    cells = np.arange(old)
    shared = np.clip(np.minimum(last, cells + 1) - np.maximum(first, cells), 0, None)
    return np.asarray(shared / (old / new), np.float32)


def _neighbors(old: int, new: int) -> tuple[Array, Array, Array]:
    """The two pixels between which each of the larger image lies, the second's weight of 2048."""
    position = ((np.arange(new) + 0.5) * (old / new) - 0.5).clip(0, old - 1)
    low = np.floor(position).astype(np.int64)
    weight = np.rint((position - low).astype(np.float32) * 2048).astype(np.int64)
    return low, np.minimum(low + 1, old - 1), weight


def enlarge(
    logits: Array,
    stride: int,
    size: tuple[int, int],
    original: tuple[int, int],
    threshold: float,
    of_scores: bool = True,
) -> Array:
    """Masks (D, H, W) of the original image from logits (D, h, w) with a cell per stride pixels.

    The values are interpolated between the cells to the network's input, then between its pixels
    to the original image, and compared with the threshold. A plain resize of the logits or of
    binary masks moves the outlines by up to a cell.

    Args:
        logits, stride: see above.
        size: (height, width) of the image in the network's input, without padding.
        original: (height, width) of the image.
        threshold: of the score.
        of_scores: whether scores are interpolated; else logits.
    """
    masks = np.zeros((len(logits), *original), bool)
    origin = stride // 2 if of_scores else (stride - 1) / 2
    rows, columns = (
        _interpolation(cells, stride, origin, inner, outer)
        for cells, inner, outer in zip(logits.shape[1:], size, original)  # noqa: B905
    )
    limit = threshold if of_scores else -np.log(1 / threshold - 1)
    for mask, logit in zip(masks, logits):  # noqa: B905
        values = 1 / (1 + np.exp(-logit)) if of_scores else logit
        inside = values > limit
        if not inside.any():
            continue
        # Nothing is above the threshold beyond the cells that are, and their neighbors.
        used = [np.flatnonzero(inside.any(axis)) for axis in (1, 0)]
        i, j = (slice(max(u[0] - 1, 0), u[-1] + 2) for u in used)
        down, across = rows[:, i], columns[:, j]
        at, to = (np.flatnonzero(weights.any(1)) for weights in (down, across))
        y, x = slice(at[0], at[-1] + 1), slice(to[0], to[-1] + 1)
        mask[y, x] = down[y] @ values[i, j].astype(np.float32) @ across[x].T > limit
    return masks


def _interpolation(cells: int, stride: int, origin: float, size: int, original: int) -> Array:
    """(original, cells) weights: both interpolations along an axis as one linear map."""
    position = (np.arange(original, dtype=np.float32) + np.float32(0.5)) * np.float32(
        size / original
    ) - np.float32(0.5)
    position = position.clip(0, size - 1).astype(np.float64)
    lower = np.floor(position)
    weights = np.zeros((original, cells))
    pixels = np.arange(original)
    for pixel, share in ((lower, 1 - position + lower), (lower + 1, position - lower)):
        place = ((pixel.clip(max=size - 1) - origin) / stride).clip(0, cells - 1)
        cell = np.floor(place).astype(np.int64)
        for at, part in ((cell, 1 - place + cell), (cell + 1, place - cell)):
            np.add.at(weights, (pixels, at.clip(max=cells - 1)), share * part)
    return weights.astype(np.float32)


def draw(image: Image.Image, found: Found) -> Image.Image:
    """The image with half-transparent masks, boxes and names."""
    pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB")).astype(np.float32)
    hues = [tuple(color) for color in np.random.default_rng(0).integers(40, 256, (64, 3)).tolist()]
    for k in reversed(range(len(found.boxes))):
        mask = found.masks[k]
        pixels[mask] = (pixels[mask] + np.array(hues[k % 64])) / 2
    drawn = Image.fromarray(pixels.astype(np.uint8))
    pen = ImageDraw.Draw(drawn)
    for k, box in enumerate(found.boxes):
        pen.rectangle(box.tolist(), outline=hues[k % 64], width=2)
        pen.text((box[0] + 3, box[1] + 2), f"{found.names[k]} {found.scores[k]:.2f}", "white")
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", help="file of condseg export --format onnx")
    parser.add_argument("image")
    parser.add_argument("--score", type=float, default=0.3, help="min score")
    parser.add_argument("--output", default="instances.png", help="the drawn image")
    options = parser.parse_args()
    image = Image.open(options.image)
    found = Model(options.model)(image, score_threshold=options.score)
    for name, score, box in zip(found.names, found.scores, found.boxes):  # noqa: B905
        print(f"{name} {score:.3f} {' '.join(f'{value:.1f}' for value in box)}")
    draw(image, found).save(options.output)
    print(f"{len(found.names)} instances -> {options.output}")


if __name__ == "__main__":
    main()
