"""COCO-format annotations and a folder of images -> samples."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import albumentations as A
import numpy as np
import torch
from torch.utils.data import Dataset

from condseg.data.images import read_depth, read_image
from condseg.data.index_cache import open_annotations
from condseg.data.masks import from_layers, to_layers
from condseg.data.mosaic import MosaicJitter, Part
from condseg.data.records import ImageRecord, Records
from condseg.data.sampler import Key
from condseg.data.transforms import seed_transform
from condseg.structures import ImageInfo, Sample, Size, Supervision, Targets

Broken = Literal["stop", "replace", "blank"]


class CocoDataset(Dataset[Sample]):
    """The images of a COCO-format json with their objects.

    The json is checked as a whole when it is opened. Polygons, RLE and compressed RLE are
    supported; crowds are counted, but are no targets. If an image's size in the json is that of
    the stored pixels before an EXIF rotation by 90 or 270 degrees, the image is not rotated,
    since its annotations refer to the stored pixels; otherwise EXIF rotation is applied.

    Args:
        annotation_file: the json.
        image_dir: folder to which its ``file_name`` entries are relative. Images without height and
            width in the json have those of the file, upright.
        transform: of ``condseg.data.transforms``; None changes nothing.
        augmentation: of several images, instead of the transform.
        skip_empty: skip images without objects (or with crowds only), as detectron2 and CondInst
            do in training.
        seed: of random transforms, with (epoch, position).
        supervision, mask_fraction: as of :class:`condseg.data.datamodule.DataModule`. Boxes are
            derived from the segmentations where these are read. None reads the masks if any object
            has one, else the boxes.
        depth: read depth maps as well: 16-bit PNGs of the image's size, named by ``depth_file``
            of each image relative to the json's folder; 0 is no measurement.
        on_broken_image: for an image that cannot be read, or has another size than in the json
            (or a depth map of which this is true), "stop" raises; "replace" returns the next
            image that can be read, in the order of the json, with its own objects; "blank" a
            black image with the objects of the broken one.

    Attributes:
        categories: sorted by id; labels 0..K-1 are positions in it.
        counts: number of images, objects, crowds, ... by description, see :meth:`summary`.
        sizes: (n, 2) height and width of each image in the json.
        image_ids: (n,) ids of the images.
        has_masks: whether any object has a segmentation.

    Raises:
        ValueError: a file is missing or invalid; with the file, the id, the value and what is
            allowed.
    """

    def __init__(
        self,
        annotation_file: str | Path,
        image_dir: str | Path,
        transform: A.Compose | None = None,
        *,
        skip_empty: bool = False,
        seed: int = 0,
        supervision: Supervision | None = None,
        mask_fraction: float = 1.0,
        depth: bool = False,
        on_broken_image: Broken = "stop",
        augmentation: MosaicJitter | None = None,
    ) -> None:
        self.annotation_file = Path(annotation_file)
        self.image_dir = Path(image_dir)
        self.transform, self.augmentation = transform, augmentation
        self.seed = seed
        self.depth = depth
        self.on_broken_image = on_broken_image
        index = open_annotations(self.annotation_file, self.image_dir)
        self._records = Records(index, supervision, mask_fraction)
        self.categories, self.has_masks = index.categories, index.has_masks
        self.counts = self._records.counts
        self._check_files("image", self.image_dir, map(index.file_name, range(len(index.images))))
        self._images = np.arange(len(index.images))  # those of the json at each position
        if skip_empty:
            self._images = np.flatnonzero(self._records.num_objects)
            self.counts["images without objects, skipped"] = len(index.images) - len(self)
        if not len(self):
            raise ValueError(f"{self.annotation_file}: has no images with objects")
        if depth:
            self._check_depth()
        self.sizes = index.images["size"][self._images].astype(np.int64)
        self.image_ids = index.images["id"][self._images]

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, key: int | Key) -> Sample:
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        record, image, maps, broken = self._read_or_replace(index)
        part = _part_of(record, image)
        if self.augmentation is not None:

            def read(other: int) -> Part:
                return part if other == index else _part_of(*self._read_or_replace(other)[:2])

            part = self.augmentation(read, index, len(self), (self.seed, epoch))
        elif self.transform is not None:
            seed_transform(self.transform, self.seed, epoch, index)
            result = self.transform(image=part.image, masks=part.layers, bboxes=part.boxes, **maps)
            box_only = np.asarray(result["bboxes"], np.float32).reshape(-1, 5)
            part = Part(result["image"], np.asarray(result["masks"]), part.labels, box_only)
            maps = {name: result[name] for name in maps}
        image = part.image
        objects, masks, boxes = from_layers(part.layers, len(part.labels))
        if len(part.boxes):
            objects, masks, boxes = _add_box_only(objects, masks, boxes, part.boxes)
        labels = torch.tensor(part.labels, dtype=torch.int64)[torch.from_numpy(objects)]
        return Sample(
            image=torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            targets=Targets(torch.from_numpy(boxes), labels, torch.from_numpy(masks)),
            info=ImageInfo(
                image_id=record.image_id,
                file_name=str(self.image_dir / record.file_name),
                original_size=record.size,
                size=(image.shape[0], image.shape[1]),
            ),
            depth=torch.from_numpy(maps["depth"].astype(np.float32)) if self.depth else None,
            lost_objects=len(part.labels) - len(objects),
            broken=broken,
        )

    def image(self, image_id: int) -> np.ndarray:
        """The pixels of an image, or of its replacement, before the transform."""
        (index,) = np.flatnonzero(self.image_ids == image_id)
        return self._read_or_replace(int(index))[1]

    def files(self, index: int) -> tuple[Path, Path | None]:
        """The paths of an image and of its depth map; None if depth is not read."""
        record = self._record(index)
        depth = self._depth_path(record) if self.depth else None
        return self.image_dir / record.file_name, depth

    def summary(self) -> str:
        """One line with the counts of images, objects and what was skipped."""
        counts = ", ".join(f"{count} {name}" for name, count in self.counts.items() if count)
        return f"{self.annotation_file}: {len(self.categories)} categories, {counts}"

    def read(self, index: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """An image and its depth map, which has the key "depth", before the transform.

        Raises:
            ValueError: one of them cannot be read, or has another size than in the json; with the
                file and the image id.
        """
        record = self._record(index)
        path = self.image_dir / record.file_name
        try:
            image = _read_image(path, record.size)
            if not self.depth:
                return image, {}
            path = self._depth_path(record)
            return image, {"depth": read_depth(path, record.size)}
        except ValueError as error:
            reason = str(error).removeprefix(f"{path}: ")
            raise ValueError(
                f"{path} (image {record.image_id} of {self.annotation_file}): {reason}"
            ) from error

    def _record(self, index: int) -> ImageRecord:
        return self._records[int(self._images[index])]

    def _read_or_replace(
        self, index: int
    ) -> tuple[ImageRecord, np.ndarray, dict[str, np.ndarray], str | None]:
        """The record and the pixels of an image or its replacement, and why it is replaced."""
        broken: str | None = None
        for number in range(index, index + len(self)):
            record = self._record(number % len(self))
            try:
                return record, *self.read(number % len(self)), broken
            except ValueError as error:
                if self.on_broken_image == "stop":
                    raise
                broken = broken or str(error)
            if self.on_broken_image == "blank":
                maps = {"depth": np.zeros(record.size, np.uint16)} if self.depth else {}
                return record, np.zeros((*record.size, 3), np.uint8), maps, broken
        raise ValueError(f"none of the {len(self)} images can be read, the first: {broken}")

    def _depth_path(self, record: ImageRecord) -> Path:
        assert record.depth_file is not None  # _check_depth
        return self.annotation_file.parent / record.depth_file

    def _check_depth(self) -> None:
        index = self._records.index
        missing = self._images[index.images["depth"][self._images] == 0].tolist()
        if missing:
            few = ", ".join(f"{index.images['id'][i]} ({index.file_name(i)})" for i in missing[:3])
            raise ValueError(
                f"{self.annotation_file}: {len(missing)} of {len(self)} images have no "
                f"depth_file: image {few}{', ...' if len(missing) > 3 else ''}; each image needs "
                "one, or a network without depth (model.network.depth_channels null)"
            )
        depth_files = (index.depth_file(image) or "" for image in self._images.tolist())
        self._check_files("depth map", self.annotation_file.parent, depth_files)
        self.counts["depth maps"] = len(self)

    def _check_files(self, kind: str, root: Path, names: Iterable[str]) -> None:
        """Lists each folder once, which is much faster than checking each file.

        A folder, device, pipe or broken link is no file.
        """
        present: dict[str, set[str]] = {}
        missing, total = [], 0
        for name in names:
            total += 1
            last = name.rpartition("/")[2]
            if last in ("", "."):  # of "a/", whose file is "a"
                name = str(Path(name))
                last = name.rpartition("/")[2]
            folder = name.removesuffix(last)
            if folder not in present:
                entries = os.scandir(root / folder) if (root / folder).is_dir() else ()
                present[folder] = {entry.name for entry in entries if _is_file(entry)}
            if last not in present[folder]:
                missing.append(name)
        if missing:
            few = ", ".join(str(root / name) for name in missing[:3])
            raise ValueError(
                f"{self.annotation_file}: {len(missing)} of {total} {kind} files are missing: {few}"
                f"{', ...' if len(missing) > 3 else ''}"
            )


def _part_of(record: ImageRecord, image: np.ndarray) -> Part:
    box_rows = [(*box, n) for n, box in record.boxes.items()]
    boxes = np.array(box_rows, np.float32).reshape(-1, 5)
    return Part(image, to_layers(record.segmentations, record.size), record.labels, boxes)


def _read_image(path: Path, size: Size) -> np.ndarray:
    image: np.ndarray = read_image(path)
    if image.shape[:2] == size:
        return image
    stored: np.ndarray = read_image(path, upright=False)
    if stored.shape[:2] == size:
        return stored
    raise ValueError(
        f"the file is {image.shape[0]}x{image.shape[1]} (height x width), the json says "
        f"{size[0]}x{size[1]}"
    )


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # links in a circle
        return False


def _add_box_only(
    objects: np.ndarray, masks: np.ndarray, boxes: np.ndarray, box_only: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Adds objects known by a box only (x1, y1, x2, y2, position), with empty masks, in order."""
    objects = np.concatenate((objects, box_only[:, 4].astype(np.int64)))
    order = objects.argsort()
    empty = np.zeros((len(box_only), *masks.shape[1:]), dtype=bool)
    masks, boxes = np.concatenate((masks, empty)), np.concatenate((boxes, box_only[:, :4]))
    return objects[order], masks[order], boxes[order]
