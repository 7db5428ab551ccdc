"""A COCO-format json, checked as a whole before pycocotools, which does not check it, sees it.

The rules are here and in :mod:`condseg.data.masks`. Images have up to MAX_PIXELS pixels; polygons
are at most one image size outside, and their outlines have up to MAX_OUTLINE pixels. null is a
field that is missing.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from condseg.data.categories import (
    Entry,
    check_unique_ids,
    fail,
    load_coco_json,
    parse_categories,
)
from condseg.data.images import read_size
from condseg.data.index import IMAGE, INVALID_MASK, MASK, NO_MASK, OBJECT, Index
from condseg.data.limits import MAX_PIXELS
from condseg.data.masks import check_segmentation
from condseg.structures import Size

_pack_object = struct.Struct("<qii??B?d4ddqi").pack  # of OBJECT
_NO_BOX = (math.nan,) * 4


def read_index(path: Path, images: Path | None = None) -> Index:
    """Reads and checks a COCO-format json.

    A segmentation that is missing or invalid is an error only for those who read it, a missing
    box for those who do not, see :class:`condseg.data.records.Records`.

    Args:
        path: the json.
        images: folder of its images, whose files have the height and width that the json lacks.

    Raises:
        ValueError: with the file, the id, the field, its value and what is allowed.
    """
    content = load_coco_json(path)
    categories = parse_categories(path, content.categories)
    check_unique_ids(path, "images", [entry["id"] for entry in content.images])
    data = bytearray()
    rows = [_image(path, entry, images, data) for entry in content.images]
    image_rows = np.array(rows, IMAGE)
    sizes_of_files = sum(map(_has_no_size, content.images)) if images is not None else 0
    labels = {category.id: label for label, category in enumerate(categories)}
    checker = _Objects(path, labels, content.images, image_rows["size"].tolist(), data)
    packed = bytearray()
    for row in checker.rows(content.annotations()):
        packed += row
    objects = np.frombuffer(packed, OBJECT)
    check_unique_ids(path, "annotations", objects["id"].tolist())
    objects = objects[objects["image"].argsort(kind="stable")]
    image_rows["count"] = np.bincount(objects["image"], minlength=len(rows))
    image_rows["first"] = image_rows["count"].cumsum() - image_rows["count"]
    texts = np.frombuffer(data, np.uint8)
    return Index(path, categories, image_rows, objects, texts, content.sha256, sizes_of_files)


def _has_no_size(entry: Entry) -> bool:
    return entry.get("height") is None and entry.get("width") is None


def _image(path: Path, entry: Entry, images: Path | None, data: bytearray) -> tuple[Any, ...]:
    """A row of IMAGE."""
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
    start, texts = len(data), [_bytes(name), _bytes(depth or "")]
    data += b"".join(texts)
    return entry["id"], size, start, *map(len, texts), 0, 0


def _is_one_line(name: str) -> bool:
    return len(name.splitlines()) <= 1 and not name.endswith(("\n", "\r"))


class _Objects:
    """Checks the annotations of a json."""

    def __init__(
        self,
        path: Path,
        labels: dict[int, int],
        images: list[Entry],
        sizes: list[list[int]],
        data: bytearray,
    ) -> None:
        self.path, self.labels, self.data = path, labels, data
        self.images = {
            entry["id"]: (row, entry["file_name"], (height, width))
            for row, (entry, (height, width)) in enumerate(zip(images, sizes, strict=True))
        }
        self._problems: dict[bytes, int] = {}

    def rows(self, entries: Iterator[Entry]) -> Iterator[bytes]:
        """Packed rows of OBJECT; what they refer to is appended to the data."""
        for entry in entries:
            image = self.images.get(_int_or_none(entry.get("image_id")))
            if image is None:
                where = f"annotation {entry['id']}"
                fail(self.path, where, "image_id", entry.get("image_id"), 'an id of "images"')
            yield self._row(entry, *image)

    def _row(self, entry: Entry, image: int, file_name: str, size: Size) -> bytes:
        where = f"annotation {entry['id']} (image {entry['image_id']}, {file_name})"
        label = self.labels.get(_int_or_none(entry.get("category_id")))
        if label is None:
            ids = ", ".join(map(str, sorted(self.labels)[:10]))
            allowed = f"one of {ids}{', ...' if len(self.labels) > 10 else ''}"
            fail(self.path, where, "category_id", entry.get("category_id"), allowed)
        crowd = entry.get("iscrowd")
        if crowd not in (None, 0, 1):
            fail(self.path, where, "iscrowd", crowd, "0 or 1")
        area, bbox = entry.get("area"), entry.get("bbox")
        if area is not None and not (_are_finite([area]) and area >= 0):
            fail(self.path, where, "area", area, "a finite number >= 0, or none")
        # A box is checked even where targets' boxes come from the masks: the file is wrong.
        clipped = bbox is not None and self._check_box(where, bbox, size)
        mask, outside, start, length = self._add_mask(entry.get("segmentation"), size)
        return _pack_object(
            *(entry["id"], image, label, bool(crowd), clipped, mask, outside),
            math.nan if area is None else area,
            *(_NO_BOX if bbox is None else bbox),
            _visibility(entry.get("visibility")),
            *(start, length),
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

    def _add_mask(self, value: object, size: Size) -> tuple[int, bool, int, int]:
        """Appends a segmentation, or what is wrong with it, to the data.

        Returns:
            State, whether a part is outside the image, start and length.
        """
        start = len(self.data)
        try:
            segmentation, outside = check_segmentation(value, size)
        except ValueError as error:
            state = NO_MASK if value in (None, [], {}, "") else INVALID_MASK
            text = _bytes(str(error))
            known = self._problems.setdefault(text, start)  # most often the same one
            if known == start:
                self.data += text
            return state, False, known, len(text)
        text = msgspec.msgpack.encode(segmentation)
        self.data += text
        return MASK, outside, start, len(text)


def _visibility(value: object) -> float:
    """A number, NaN if there is none, infinite if it is none of 0..1 anyway."""
    if not isinstance(value, int | float):
        return math.nan
    return float(value) if abs(value) <= 1 else math.inf  # also NaN


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _int_or_none(value: object) -> Any:
    return value if type(value) is int else None


def _are_finite(values: list[Any]) -> bool:
    try:
        return all(type(value) in (int, float) and math.isfinite(value) for value in values)
    except OverflowError:  # an integer above the largest float
        return False
