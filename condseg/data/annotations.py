"""A COCO-format json, checked as a whole -> records of its images."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from condseg.data.categories import check_unique_ids, fail, load_coco_json, parse_categories
from condseg.data.masks import Segmentation, check_segmentation
from condseg.structures import Category, Size, Supervision

Box = tuple[float, float, float, float]
BOX_ONLY = "objects with a box only"


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image of the json and its objects, without crowds.

    Attributes:
        image_id: id in the json.
        file_name: path relative to the image folder.
        size: (height, width).
        depth_file: path of the depth map relative to the json's folder.
        labels: contiguous class of each object.
        segmentations: of each object; None where only its box is used.
        boxes: xyxy, clipped to the image, of the objects without a segmentation, by position.
    """

    image_id: int
    file_name: str
    size: Size
    depth_file: str | None
    labels: list[int]
    segmentations: list[Segmentation | None]
    boxes: dict[int, Box]


@dataclass(frozen=True, slots=True)
class Annotations:
    """The content of a COCO json; label k is ``categories[k]``, ``counts`` are by description."""

    categories: tuple[Category, ...]
    images: list[ImageRecord]
    counts: Counter[str]


def read_annotations(
    path: Path, supervision: Supervision = "masks", mask_fraction: float = 1.0
) -> Annotations:
    """Reads and checks a COCO-format json.

    Args as of :class:`CocoDataset`.

    Raises:
        ValueError: with the file, the id, the field, its value and what is allowed.
    """
    content = load_coco_json(path)
    categories = parse_categories(path, content)
    check_unique_ids(path, content, "images")
    check_unique_ids(path, content, "annotations")
    images = {entry["id"]: _image_record(path, entry) for entry in content["images"]}
    labels = {category.id: label for label, category in enumerate(categories)}
    reader = _ObjectReader(path, images, labels, supervision, mask_fraction)
    for entry in content["annotations"]:
        reader.add(entry)
    counts = Counter(images=len(images), objects=sum(len(i.labels) for i in images.values()))
    return Annotations(categories, list(images.values()), counts + reader.counts)


def _image_record(path: Path, entry: dict[str, Any]) -> ImageRecord:
    where = f"image {entry['id']}"
    name, depth = entry.get("file_name"), entry.get("depth_file")
    if not isinstance(name, str) or not name:
        fail(path, where, "file_name", name, "a path relative to the image folder")
    for side in ("height", "width"):
        if type(entry.get(side)) is not int or entry[side] < 1:
            fail(path, where, side, entry.get(side), "an integer >= 1")
    if not isinstance(depth, str | None):
        fail(path, where, "depth_file", depth, "a path relative to the json's folder, or null")
    return ImageRecord(entry["id"], name, (entry["height"], entry["width"]), depth, [], [], {})


class _ObjectReader:
    """Checks annotations and adds them to the records of their images."""

    def __init__(
        self,
        path: Path,
        images: dict[int, ImageRecord],
        labels: dict[int, int],
        supervision: Supervision,
        mask_fraction: float,
    ) -> None:
        self.path, self.images, self.labels = path, images, labels
        self.supervision, self.mask_fraction = supervision, mask_fraction
        self.counts: Counter[str] = Counter()

    def add(self, entry: dict[str, Any]) -> None:
        where = f"annotation {entry['id']}"
        image = self.images.get(_int_or_none(entry.get("image_id")))
        if image is None:
            fail(self.path, where, "image_id", entry.get("image_id"), 'an id of "images"')
        where += f" (image {image.image_id}, {image.file_name})"
        label = self.labels.get(_int_or_none(entry.get("category_id")))
        if label is None:
            ids = ", ".join(map(str, sorted(self.labels)[:10]))
            allowed = f"one of {ids}{', ...' if len(self.labels) > 10 else ''}"
            fail(self.path, where, "category_id", entry.get("category_id"), allowed)
        if entry.get("iscrowd", 0) not in (0, 1):
            fail(self.path, where, "iscrowd", entry["iscrowd"], "0 or 1")
        # A box is checked even where targets' boxes come from the masks: the file is wrong.
        box_clipped = "bbox" in entry and self._check_box(where, entry["bbox"], image.size)
        segmentation, mask_clipped = None, False
        if self._reads_mask(image.image_id, entry):
            try:
                segmentation, mask_clipped = check_segmentation(
                    entry.get("segmentation"), image.size
                )
            except ValueError as error:
                raise ValueError(f"{self.path}: {where}: {error}") from error
        elif "bbox" not in entry:
            allowed = "[x, y, width, height], since no segmentation of this object is read"
            fail(self.path, where, "bbox", None, allowed)
        self.counts["objects partly outside the image, clipped"] += box_clipped or mask_clipped
        if entry.get("iscrowd", 0):
            self.counts["crowds, not used as targets"] += 1
            return
        if segmentation is None:
            box = _clipped_xyxy(entry["bbox"], image.size)
            if box[0] >= box[2] or box[1] >= box[3]:
                self.counts["objects with an empty box, skipped"] += 1
                return
            image.boxes[len(image.labels)] = box
            self.counts[BOX_ONLY] += 1
        image.labels.append(label)
        image.segmentations.append(segmentation)

    def _reads_mask(self, image_id: int, entry: dict[str, Any]) -> bool:
        if self.supervision != "mixed":
            return self.supervision == "masks"
        digest = hashlib.sha256(str(image_id).encode()).digest()
        chosen = int.from_bytes(digest[:8], "big") < self.mask_fraction * 2**64
        return chosen and entry.get("segmentation") not in (None, [], {}, "")

    def _check_box(self, where: str, box: object, size: Size) -> bool:
        """Checks a box (x, y, width, height); True if it exceeds the image and is clipped."""
        numbers = isinstance(box, list) and [type(v) in (int, float) for v in box] == [True] * 4
        if not numbers or not all(map(math.isfinite, box)) or min(box[2:]) < 0:  # type: ignore
            fail(self.path, where, "bbox", box, "[x, y, width, height], finite, no negative sides")
        assert isinstance(box, list)
        x, y, width, height = box
        if x > size[1] or y > size[0] or x + width < 0 or y + height < 0:
            allowed = f"a box that overlaps the image of {size[0]}x{size[1]} (height x width)"
            fail(self.path, where, "bbox", box, allowed)
        # Half a pixel beyond the border is rounding.
        return bool(min(x, y) < -0.5 or x + width > size[1] + 0.5 or y + height > size[0] + 0.5)


def _clipped_xyxy(box: list[float | int], size: Size) -> Box:
    """(x, y, width, height) -> (x1, y1, x2, y2), clipped to the image."""
    x, y, width, height = map(float, box)
    return max(x, 0.0), max(y, 0.0), min(x + width, float(size[1])), min(y + height, float(size[0]))


def _int_or_none(value: object) -> Any:
    return value if isinstance(value, int) else None
