"""A COCO-format json, checked as a whole -> records of its images."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from condseg.data.categories import check_unique_ids, fail, load_coco_json, parse_categories
from condseg.data.images import read_size
from condseg.data.limits import MAX_OBJECTS, MAX_PIXELS
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
class ObjectRecord:
    """An entry of "annotations".

    Attributes:
        annotation_id: id in the json.
        image: its image.
        label: contiguous class.
        crowd: whether it is a group of objects.
        segmentation: None if it is not read.
        bbox: (x, y, width, height); None if the json has none.
        area: in pixels; None if the json has none.
        visibility: the field of this name.
        clipped: whether a part of it is outside the image.
    """

    annotation_id: int
    image: ImageRecord
    label: int
    crowd: bool
    segmentation: Segmentation | None
    bbox: list[float | int] | None
    area: float | int | None
    visibility: object
    clipped: bool


@dataclass(frozen=True, slots=True)
class Annotations:
    """The content of a COCO json.

    Attributes:
        categories: that of label k at position k.
        images: with their objects.
        counts: by description.
        has_masks: see :class:`CocoFile`.
    """

    categories: tuple[Category, ...]
    images: list[ImageRecord]
    counts: Counter[str]
    has_masks: bool


def read_annotations(
    path: Path,
    supervision: Supervision | None = None,
    mask_fraction: float = 1.0,
    images: Path | None = None,
) -> Annotations:
    """Reads and checks a COCO-format json for training.

    Args as of :class:`CocoDataset` and :class:`CocoFile`.

    Raises:
        ValueError: with the file, the id, the field, its value and what is allowed.
    """
    coco = CocoFile(path, images)
    counts: Counter[str] = Counter({"images whose size is the file's": coco.sizes_of_files})
    for found in coco.objects(supervision, mask_fraction):
        image = found.image
        counts["objects partly outside the image, clipped"] += found.clipped
        if found.crowd:
            counts["crowds, not used as targets"] += 1
            continue
        if found.segmentation is None:
            assert found.bbox is not None
            box = _clipped_xyxy(found.bbox, image.size)
            if box[0] >= box[2] or box[1] >= box[3]:
                counts["objects with an empty box, skipped"] += 1
                continue
            image.boxes[len(image.labels)] = box
            counts[BOX_ONLY] += 1
        image.labels.append(found.label)
        image.segmentations.append(found.segmentation)
        if len(image.labels) > MAX_OBJECTS:
            where = f"image {image.image_id} ({image.file_name})"
            raise ValueError(f"{path}: {where} has more than {MAX_OBJECTS} objects, the max")
    records = list(coco.images.values())
    total = Counter(images=len(records), objects=sum(len(image.labels) for image in records))
    return Annotations(coco.categories, records, total + counts, coco.has_masks)


class CocoFile:
    """A COCO-format json, checked before pycocotools, which does not check it, sees any of it.

    Images have up to MAX_PIXELS pixels; polygons are at most one image size outside, and their
    outlines have up to MAX_OUTLINE pixels. null is a field that is missing.

    Args:
        path: the json.
        images: folder of its images, whose files have the height and width that the json lacks.

    Attributes:
        categories: sorted by id.
        images: by id; without their objects.
        has_masks: whether any object has a segmentation, or there are no objects.
        sizes_of_files: number of images whose size is the file's.

    Raises:
        ValueError: with the file, the id, the field, its value and what is allowed.
    """

    def __init__(self, path: Path, images: Path | None = None) -> None:
        content = load_coco_json(path)
        self.path = path
        self.categories = parse_categories(path, content)
        check_unique_ids(path, content, "images")
        check_unique_ids(path, content, "annotations")
        entries = content["images"]
        self.images = {entry["id"]: _image_record(path, entry, images) for entry in entries}
        self.sizes_of_files = sum(map(_has_no_size, entries))
        self._labels = {category.id: label for label, category in enumerate(self.categories)}
        self._entries: list[dict[str, Any]] = content["annotations"]
        self.has_masks = not self._entries or any(map(_has_mask, self._entries))

    def objects(
        self, supervision: Supervision | None = None, mask_fraction: float = 1.0
    ) -> Iterator[ObjectRecord]:
        """Checks the annotations one after the other.

        Args:
            supervision: None reads the masks if any object has one, else the boxes.
            mask_fraction: as of :class:`CocoDataset`.

        Raises:
            ValueError: with the file, the id, the field, its value and what is allowed.
        """
        if supervision is None:
            supervision = "masks" if self.has_masks else "boxes"
        elif supervision == "masks" and not self.has_masks:
            raise ValueError(
                f"{self.path}: no object has a segmentation; data.supervision boxes learns masks "
                "from boxes"
            )
        for entry in self._entries:
            where = f"annotation {entry['id']}"
            image = self.images.get(_int_or_none(entry.get("image_id")))
            if image is None:
                fail(self.path, where, "image_id", entry.get("image_id"), 'an id of "images"')
            where += f" (image {image.image_id}, {image.file_name})"
            reads_mask = _reads_mask(entry, supervision, mask_fraction)
            yield self._object(entry, where, image, reads_mask)

    def _object(
        self, entry: dict[str, Any], where: str, image: ImageRecord, reads_mask: bool
    ) -> ObjectRecord:
        label = self._labels.get(_int_or_none(entry.get("category_id")))
        if label is None:
            ids = ", ".join(map(str, sorted(self._labels)[:10]))
            allowed = f"one of {ids}{', ...' if len(self._labels) > 10 else ''}"
            fail(self.path, where, "category_id", entry.get("category_id"), allowed)
        crowd = entry.get("iscrowd")
        if crowd not in (None, 0, 1):
            fail(self.path, where, "iscrowd", crowd, "0 or 1")
        area, bbox = entry.get("area"), entry.get("bbox")
        if area is not None and not (_are_finite([area]) and area >= 0):
            fail(self.path, where, "area", area, "a finite number >= 0, or none")
        # A box is checked even where targets' boxes come from the masks: the file is wrong.
        clipped = bbox is not None and self._check_box(where, bbox, image.size)
        segmentation = None
        if reads_mask:
            try:
                segmentation, outside = check_segmentation(entry.get("segmentation"), image.size)
            except ValueError as error:
                raise ValueError(f"{self.path}: {where}: {error}") from error
            clipped |= outside
        elif bbox is None:
            allowed = "[x, y, width, height], since no segmentation of this object is read"
            fail(self.path, where, "bbox", None, allowed)
        return ObjectRecord(
            entry["id"],
            image,
            label,
            bool(crowd),
            segmentation,
            bbox,
            area,
            entry.get("visibility"),
            clipped,
        )

    def _check_box(self, where: str, box: object, size: Size) -> bool:
        """Checks a box (x, y, width, height); True if it exceeds the image and is clipped."""
        if not isinstance(box, list) or len(box) != 4 or not _are_finite(box) or min(box[2:]) < 0:
            fail(self.path, where, "bbox", box, "[x, y, width, height], finite, no negative sides")
        x, y, width, height = map(float, box)
        if x > size[1] or y > size[0] or x + width < 0 or y + height < 0:
            allowed = f"a box that overlaps the image of {size[0]}x{size[1]} (height x width)"
            fail(self.path, where, "bbox", box, allowed)
        # Half a pixel beyond the border is rounding.
        return bool(min(x, y) < -0.5 or x + width > size[1] + 0.5 or y + height > size[0] + 0.5)


def _has_no_size(entry: dict[str, Any]) -> bool:
    return entry.get("height") is None and entry.get("width") is None


def _image_record(path: Path, entry: dict[str, Any], images: Path | None) -> ImageRecord:
    where = f"image {entry['id']}"
    name, depth = entry.get("file_name"), entry.get("depth_file")
    if not (isinstance(name, str) and 0 < len(name) <= 4096 and _is_one_line(name)):
        fail(path, where, "file_name", name, "a path relative to the image folder, in one line")
    if images is not None and _has_no_size(entry):
        try:
            size = read_size(images / name)
        except ValueError as error:
            text = f"{path}: {where}: height and width are missing, and {error}"
            raise ValueError(text) from error
    else:
        for side in ("height", "width"):
            if type(entry.get(side)) is not int or entry[side] < 1:
                fail(path, where, side, entry.get(side), "an integer >= 1")
        size = entry["height"], entry["width"]
        if size[0] * size[1] > MAX_PIXELS:
            fail(path, where, "height x width", size, f"up to {MAX_PIXELS} pixels")
    if not (depth is None or (isinstance(depth, str) and _is_one_line(depth))):
        allowed = "a path relative to the json's folder, in one line, or null"
        fail(path, where, "depth_file", depth, allowed)
    return ImageRecord(entry["id"], name, size, depth, [], [], {})


def _is_one_line(name: str) -> bool:
    return len(name.splitlines()) <= 1 and not name.endswith(("\n", "\r"))


def _reads_mask(entry: dict[str, Any], supervision: Supervision, mask_fraction: float) -> bool:
    if supervision != "mixed":
        return supervision == "masks"
    digest = hashlib.sha256(str(entry["image_id"]).encode()).digest()
    chosen = int.from_bytes(digest[:8], "big") < mask_fraction * 2**64
    return chosen and _has_mask(entry)


def _has_mask(entry: dict[str, Any]) -> bool:
    return entry.get("segmentation") not in (None, [], {}, "")


def _clipped_xyxy(box: list[float | int], size: Size) -> Box:
    """(x, y, width, height) -> (x1, y1, x2, y2), clipped to the image."""
    x, y, width, height = map(float, box)
    return max(x, 0.0), max(y, 0.0), min(x + width, float(size[1])), min(y + height, float(size[0]))


def _int_or_none(value: object) -> Any:
    return value if type(value) is int else None


def _are_finite(values: list[Any]) -> bool:
    try:
        return all(type(value) in (int, float) and math.isfinite(value) for value in values)
    except OverflowError:  # an integer above the largest float
        return False
