"""The images of a COCO json with the objects that a reader wants."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from condseg.data.categories import fail
from condseg.data.index import MASK, NO_MASK, Index
from condseg.data.limits import MAX_OBJECTS
from condseg.data.masks import Segmentation
from condseg.structures import Size, Supervision

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


class Records:
    """The images of an index, each with its objects.

    Forked workers share the arrays, whose pages no reference count changes.

    Args:
        index: of the json.
        supervision: None reads the masks if any object has one, else the boxes.
        mask_fraction: as of :class:`CocoDataset`.

    Attributes:
        reads_mask: (m,) whether the segmentation of each object is read.
        used: (m,) whether each object is a target.
        counts: by description.

    Raises:
        ValueError: a segmentation or a box that is read is missing or invalid; with the file, the
            id and the value.
    """

    def __init__(
        self, index: Index, supervision: Supervision | None = None, mask_fraction: float = 1.0
    ) -> None:
        if supervision is None:
            supervision = "masks" if index.has_masks else "boxes"
        elif supervision == "masks" and not index.has_masks:
            raise ValueError(
                f"{index.path}: no object has a segmentation; data.supervision boxes learns masks "
                "from boxes"
            )
        self.index, objects = index, index.objects
        self.reads_mask = np.full(len(objects), supervision == "masks")
        if supervision == "mixed":
            chosen = np.array([_is_chosen(i, mask_fraction) for i in index.images["id"].tolist()])
            self.reads_mask = (objects["mask"] != NO_MASK) & chosen[objects["image"]]
        no_box = np.isnan(objects["box"][:, 0])
        wrong = np.where(self.reads_mask, objects["mask"] != MASK, no_box)
        if wrong.any():
            self._fail(int(wrong.argmax()))
        self.used = ~objects["crowd"]
        by_box = np.flatnonzero(self.used & ~self.reads_mask)
        x1, y1, x2, y2 = self._clipped_xyxy(by_box).T
        empty = (x1 >= x2) | (y1 >= y2)
        self.used[by_box[empty]] = False
        clipped = objects["clipped"] | (self.reads_mask & objects["outside"])
        self.counts = Counter(images=len(self), objects=int(self.used.sum())) + Counter(
            {
                "images whose size is the file's": index.sizes_of_files,
                "objects partly outside the image, clipped": int(clipped.sum()),
                "crowds, not used as targets": int(objects["crowd"].sum()),
                "objects with an empty box, skipped": int(empty.sum()),
                BOX_ONLY: len(by_box) - int(empty.sum()),
            }
        )
        numbers = self.num_objects
        if numbers.max(initial=0) > MAX_OBJECTS:
            image = int(numbers.argmax())
            where = f"image {index.images['id'][image]} ({index.file_name(image)})"
            raise ValueError(f"{index.path}: {where} has more than {MAX_OBJECTS} objects, the max")

    def __len__(self) -> int:
        return len(self.index.images)

    @property
    def num_objects(self) -> np.ndarray:
        """(n,) number of targets of each image."""
        return np.bincount(self.index.objects["image"][self.used], minlength=len(self))

    def __getitem__(self, image: int) -> ImageRecord:
        index = self.index
        if not 0 <= image < len(self):
            raise IndexError(f"image {image} of {len(self)}")
        first, count = index.images["first"][image], index.images["count"][image]
        numbers = first + np.flatnonzero(self.used[first : first + count])
        by_box = np.flatnonzero(~self.reads_mask[numbers])
        boxes = self._clipped_xyxy(numbers[by_box]).tolist()
        return ImageRecord(
            int(index.images["id"][image]),
            index.file_name(image),
            index.size(image),
            index.depth_file(image),
            index.objects["label"][numbers].tolist(),
            [index.segmentation(n) if self.reads_mask[n] else None for n in numbers.tolist()],
            {place: tuple(box) for place, box in zip(by_box.tolist(), boxes, strict=True)},
        )

    def _clipped_xyxy(self, numbers: np.ndarray) -> np.ndarray:
        """(k, 4) boxes of objects, clipped to their images."""
        objects, images = self.index.objects, self.index.images
        box, (height, width) = objects["box"][numbers], images["size"][objects["image"][numbers]].T
        start, end = box[:, :2].clip(min=0.0), box[:, :2] + box[:, 2:]
        return np.column_stack((start, np.minimum(end, np.column_stack((width, height)))))

    def _fail(self, number: int) -> NoReturn:
        index, where = self.index, self.index.where(number)
        if self.reads_mask[number]:
            raise ValueError(f"{index.path}: {where}: {index.problem(number)}")
        allowed = "[x, y, width, height], since no segmentation of this object is read"
        fail(index.path, where, "bbox", None, allowed)


def _is_chosen(image_id: int, mask_fraction: float) -> bool:
    digest = hashlib.sha256(str(image_id).encode()).digest()
    return int.from_bytes(digest[:8], "big") < mask_fraction * 2**64
