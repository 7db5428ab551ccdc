"""COCO-format annotations and a folder of pictures -> samples."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import albumentations as A
import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from condseg.data.images import read_depth, read_image
from condseg.data.masks import Segmentation, check_segmentation, from_layers, to_layers
from condseg.data.transforms import seed_transform
from condseg.structures import Category, ImageInfo, Sample, Size, Supervision, Targets

Key = tuple[int, int]
"""(position in the dataset, epoch)."""

_MAX_WORKERS = 1024


@dataclass(frozen=True, slots=True)
class _Picture:
    """What is kept of one picture and its objects; crowds are not among them.

    An object has a segmentation, or None and a box (x1, y1, x2, y2) under its position.
    """

    image_id: int
    file_name: str
    size: Size
    labels: list[int]
    segmentations: list[Segmentation | None]
    boxes: dict[int, tuple[float, float, float, float]]
    depth_file: str | None = None


class Records:
    """A list of Python values that processes share: pickled, end to end, in one tensor.

    A forked worker reads the parent's pages, for no reference count in them ever changes; to a
    spawned one torch hands the tensor through shared memory. Either way there is one copy and a
    worker starts without parsing anything.
    """

    def __init__(self, values: Iterable[Any]) -> None:
        data, ends = bytearray(), [0]
        for value in values:
            data += pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
            ends.append(len(data))
        self._ends = torch.tensor(ends)
        self._data = (
            torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
        )

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> Any:
        start, end = self._ends[index : index + 2].tolist()
        return pickle.loads(self._data[start:end].numpy().data)


class CocoDataset(Dataset[Sample]):
    """The pictures of a COCO-format json with their objects.

    The file is checked as a whole when it is opened: nothing wrong in it waits for the third
    hour of training. Polygons, RLE and compressed RLE are taken. Crowds are counted, but never
    in the targets. A picture whose size in the json is that of the stored pixels before EXIF
    rotation (90 or 270 degrees) is left unrotated, for its annotations were drawn so; where both
    sizes agree, the picture is turned as people see it.

    Args:
        annotation_file: the json.
        image_dir: folder to which its ``file_name`` entries are relative.
        transform: of ``condseg.data.transforms``; None changes nothing.
        skip_empty: leave out pictures without objects (or with crowds alone), as detectron2 and
            CondInst do in training.
        seed: with (epoch, position) it determines what a random transform does.
        supervision: "masks" wants a segmentation of each object, whose box is derived from it;
            "boxes" reads no segmentation, but the ``bbox``; "mixed" reads the ``bbox`` of objects
            without a segmentation (missing, null or empty).
        mask_fraction: with "mixed", the part of the pictures whose segmentations are read at all,
            chosen by a hash of the image id: the pictures of 0.2 are among those of 0.5.
        depth: read the depth maps, too: 16-bit PNGs of the pictures' sizes that the pictures'
            entries name as ``depth_file``, relative to the json's folder; 0 is no measurement.
            Each picture must have one.

    Attributes:
        categories: sorted by id; labels 0..K-1 are positions in it.
        counts: what was found, by name; :meth:`summary` puts it in words.
        sizes: (height, width) of each picture in the json, (n, 2).
        image_ids: ids of the pictures, (n,).

    Raises:
        ValueError: a file is missing or broken; the message names it, the id in it, the value
            and what is allowed.
    """

    def __init__(
        self,
        annotation_file: str | Path,
        image_dir: str | Path,
        transform: A.Compose | None = None,
        *,
        skip_empty: bool = False,
        seed: int = 0,
        supervision: Supervision = "masks",
        mask_fraction: float = 1.0,
        depth: bool = False,
    ) -> None:
        self.annotation_file = Path(annotation_file)
        self.image_dir = Path(image_dir)
        self.transform = transform
        self.seed = seed
        self.depth = depth
        content = _load_json(self.annotation_file)
        reader = _Reader(self.annotation_file, content, supervision, mask_fraction)
        pictures = reader.pictures()
        self.categories = reader.categories
        self.counts = reader.counts
        self._check_files("picture", (self.image_dir / picture.file_name for picture in pictures))
        if skip_empty:
            self.counts["pictures without objects left out"] = sum(
                not picture.labels for picture in pictures
            )
            pictures = [picture for picture in pictures if picture.labels]
        if not pictures:
            raise ValueError(f"{self.annotation_file}: no pictures with objects in it")
        if depth:
            self._check_depth(pictures)
        self.sizes = np.array([picture.size for picture in pictures])
        self.image_ids = np.array([picture.image_id for picture in pictures])
        self._records = Records(pictures)
        # One slot a worker, so that none waits for another and none counts over another.
        self._vanished = torch.zeros(_MAX_WORKERS, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, key: int | Key) -> Sample:
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        picture: _Picture = self._records[index]
        image = self._read(picture)
        layers = to_layers(picture.segmentations, picture.size)
        alone = np.array([(*box, n) for n, box in picture.boxes.items()], np.float32).reshape(-1, 5)
        maps = {"depth": self._read_depth(picture)} if self.depth else {}
        if self.transform is not None:
            seed_transform(self.transform, self.seed, epoch, index)
            done = self.transform(image=image, masks=layers, bboxes=alone, **maps)
            image, layers = done["image"], np.asarray(done["masks"])
            alone = np.asarray(done["bboxes"], np.float32).reshape(-1, 5)
            maps = {name: done[name] for name in maps}
        left, masks, boxes = from_layers(layers, len(picture.labels))
        if len(alone):
            left, masks, boxes = _add_boxes(left, masks, boxes, alone)
        worker = get_worker_info()
        self._vanished[worker.id + 1 if worker else 0] += len(picture.labels) - len(left)
        return Sample(
            image=torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            targets=Targets(
                boxes=torch.from_numpy(boxes),
                labels=torch.tensor(picture.labels, dtype=torch.int64)[torch.from_numpy(left)],
                masks=torch.from_numpy(masks),
            ),
            info=ImageInfo(
                image_id=picture.image_id,
                file_name=str(self.image_dir / picture.file_name),
                original_size=picture.size,
                size=(image.shape[0], image.shape[1]),
            ),
            depth=torch.from_numpy(maps["depth"].astype(np.float32)) if self.depth else None,
        )

    def files(self, index: int) -> tuple[Path, Path | None]:
        """The picture's file and its depth map's; None where no depth is read."""
        picture: _Picture = self._records[index]
        return self.image_dir / picture.file_name, self._depth_path(picture)

    @property
    def vanished(self) -> int:
        """Objects of which no pixel was left after the transform, in all workers so far."""
        return int(self._vanished.sum())

    def summary(self) -> str:
        """One line: how much of what was found, and what was left out."""
        found = ", ".join(f"{count} {name}" for name, count in self.counts.items() if count)
        return f"{self.annotation_file}: {len(self.categories)} categories, {found}"

    def _read(self, picture: _Picture) -> np.ndarray:
        path = self.image_dir / picture.file_name
        image: np.ndarray = read_image(path)
        if image.shape[:2] == picture.size:
            return image
        stored: np.ndarray = read_image(path, upright=False)
        if stored.shape[:2] == picture.size:
            return stored
        raise ValueError(
            f"{path} (image {picture.image_id}): the file is {image.shape[0]}x{image.shape[1]} "
            f"(height x width), {self.annotation_file} says {picture.size[0]}x{picture.size[1]}"
        )

    def _depth_path(self, picture: _Picture) -> Path | None:
        if not self.depth:
            return None
        assert picture.depth_file is not None  # _check_depth
        return self.annotation_file.parent / picture.depth_file

    def _read_depth(self, picture: _Picture) -> np.ndarray:
        path = self._depth_path(picture)
        assert path is not None
        try:
            return read_depth(path, picture.size)
        except ValueError as error:
            raise ValueError(
                f"{self.annotation_file}: image {picture.image_id} ({picture.file_name}): {error}"
            ) from error

    def _check_depth(self, pictures: list[_Picture]) -> None:
        without = [picture for picture in pictures if not picture.depth_file]
        if without:
            few = ", ".join(f"{p.image_id} ({p.file_name})" for p in without[:3])
            raise ValueError(
                f"{self.annotation_file}: {len(without)} of {len(pictures)} pictures have no "
                f"depth_file: image {few}{', ...' if len(without) > 3 else ''}; allowed is one for "
                "each picture, or a network without depth (model.network.depth_channels null)"
            )
        folder = self.annotation_file.parent
        self._check_files("depth map", (folder / str(p.depth_file) for p in pictures))
        self.counts["depth maps"] = len(pictures)

    def _check_files(self, kind: str, paths: Iterable[Path]) -> None:
        """Lists each folder once, which is much faster than asking for each file."""
        by_folder: dict[Path, list[str]] = defaultdict(list)
        for path in paths:
            by_folder[path.parent].append(path.name)
        missing: list[Path] = []
        for folder, wanted in by_folder.items():
            there = {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()
            missing += [folder / name for name in wanted if name not in there]
        if missing:
            few = ", ".join(str(path) for path in missing[:3])
            raise ValueError(
                f"{self.annotation_file}: {len(missing)} of "
                f"{sum(map(len, by_folder.values()))} {kind} files are missing: {few}"
                f"{', ...' if len(missing) > 3 else ''}"
            )


def _add_boxes(
    indices: np.ndarray, masks: np.ndarray, boxes: np.ndarray, alone: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Objects with masks, and those (x1, y1, x2, y2, index) without, in the order of the file."""
    indices = np.concatenate((indices, alone[:, 4].astype(np.int64)))
    order = indices.argsort()
    empty = np.zeros((len(alone), *masks.shape[1:]), dtype=bool)
    masks, boxes = np.concatenate((masks, empty)), np.concatenate((boxes, alone[:, :4]))
    return indices[order], masks[order], boxes[order]


def read_categories(annotation_file: str | Path) -> tuple[Category, ...]:
    """The categories of a COCO-format json, sorted by id.

    Raises:
        ValueError: the file or its categories are broken.
    """
    return _Reader(Path(annotation_file), _load_json(Path(annotation_file))).categories


def _load_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path}: no such annotation file")
    try:
        content = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        size = path.stat().st_size
        raise ValueError(
            f"{path}: no valid json ({size} bytes, perhaps cut off): {error}"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}; a COCO json is an object")
    for name in ("images", "annotations", "categories"):
        if not isinstance(content.get(name), list):
            raise ValueError(
                f'{path}: "{name}" is {"missing" if name not in content else "no list"}; a COCO '
                'json has the lists "images", "annotations" and "categories"'
            )
        for position, entry in enumerate(content[name]):
            if not isinstance(entry, dict) or type(entry.get("id")) is not int:
                raise ValueError(f'{path}: entry {position} of "{name}" has no integer "id"')
    if not content["categories"]:
        raise ValueError(f'{path}: "categories" is empty; one category or more is needed')
    return content


class _Reader:
    """Goes through a COCO json once and says what is wrong where."""

    def __init__(
        self,
        path: Path,
        content: dict[str, Any],
        supervision: Supervision = "masks",
        mask_fraction: float = 1.0,
    ) -> None:
        self.path = path
        self.content = content
        self.supervision, self.mask_fraction = supervision, mask_fraction
        self.counts: Counter[str] = Counter()
        self._unique("categories")
        for entry in content["categories"]:
            if not isinstance(entry.get("name"), str):
                self._fail(f"category {entry['id']}", "name", entry.get("name"), "a text")
        entries = sorted(content["categories"], key=lambda entry: int(entry["id"]))
        self.categories = tuple(Category(entry["id"], entry["name"]) for entry in entries)

    def pictures(self) -> list[_Picture]:
        self._unique("images")
        self._unique("annotations")
        labels = {category.id: label for label, category in enumerate(self.categories)}
        pictures = {entry["id"]: self._picture(entry) for entry in self.content["images"]}
        for entry in self.content["annotations"]:
            self._add(entry, pictures, labels)
        self.counts["pictures"] = len(pictures)
        self.counts["objects"] = sum(len(picture.labels) for picture in pictures.values())
        return list(pictures.values())

    def _picture(self, entry: dict[str, Any]) -> _Picture:
        where = f"image {entry['id']}"
        name = entry.get("file_name")
        if not isinstance(name, str) or not name:
            self._fail(where, "file_name", name, "a path relative to the picture folder")
        for side in ("height", "width"):
            if type(entry.get(side)) is not int or entry[side] < 1:
                self._fail(where, side, entry.get(side), "an integer of 1 or more")
        depth = entry.get("depth_file")
        if not isinstance(depth, str | None):
            self._fail(where, "depth_file", depth, "a path relative to this file's folder, or none")
        size = entry["height"], entry["width"]
        return _Picture(entry["id"], str(name), size, [], [], {}, depth)

    def _add(
        self, entry: dict[str, Any], pictures: dict[int, _Picture], labels: dict[int, int]
    ) -> None:
        where = f"annotation {entry['id']}"
        picture = pictures.get(_hashable(entry.get("image_id")))
        if picture is None:
            self._fail(where, "image_id", entry.get("image_id"), 'an id of "images"')
        where += f" (image {picture.image_id}, {picture.file_name})"
        label = labels.get(_hashable(entry.get("category_id")))
        if label is None:
            allowed = ", ".join(map(str, sorted(labels)[:10])) + (
                ", ..." if len(labels) > 10 else ""
            )
            self._fail(where, "category_id", entry.get("category_id"), f"one of {allowed}")
        if entry.get("iscrowd", 0) not in (0, 1):
            self._fail(where, "iscrowd", entry["iscrowd"], "0 or 1")
        outside = "bbox" in entry and self._box_is_clipped(where, entry["bbox"], picture.size)
        segmentation, cut = None, False
        if self._has_mask(picture.image_id, entry):
            try:
                segmentation, cut = check_segmentation(entry.get("segmentation"), picture.size)
            except ValueError as error:
                raise ValueError(f"{self.path}: {where}: {error}") from error
        elif "bbox" not in entry:
            allowed = "[x, y, width, height], for no segmentation is read of this object"
            self._fail(where, "bbox", None, allowed)
        self.counts["objects partly outside their picture, clipped"] += outside or cut
        if entry.get("iscrowd", 0):
            self.counts["crowds, not trained on"] += 1
            return
        if segmentation is None:
            box = _corners(entry["bbox"], picture.size)
            if box[0] >= box[2] or box[1] >= box[3]:
                self.counts["objects whose box is empty, not trained on"] += 1
                return
            picture.boxes[len(picture.labels)] = box
            self.counts["objects known by their boxes alone"] += 1
        picture.labels.append(label)
        picture.segmentations.append(segmentation)

    def _has_mask(self, image_id: int, entry: dict[str, Any]) -> bool:
        """Whether the segmentation of an annotation is to be read."""
        if self.supervision != "mixed":
            return self.supervision == "masks"
        digest = hashlib.sha256(str(image_id).encode()).digest()
        chosen = int.from_bytes(digest[:8], "big") < self.mask_fraction * 2**64
        return chosen and entry.get("segmentation") not in (None, [], {}, "")

    def _box_is_clipped(self, where: str, box: object, size: Size) -> bool:
        """Checks a box, even where targets' boxes come from the masks: a wrong file is wrong."""
        numbers = isinstance(box, list) and [type(v) in (int, float) for v in box] == [True] * 4
        if not numbers or not all(map(math.isfinite, box)) or min(box[2:]) < 0:  # type: ignore
            self._fail(where, "bbox", box, "[x, y, width, height], finite, no negative sides")
        assert isinstance(box, list)
        x, y, width, height = box
        if x > size[1] or y > size[0] or x + width < 0 or y + height < 0:
            allowed = f"a box that meets the picture of {size[0]}x{size[1]} (height x width)"
            self._fail(where, "bbox", box, allowed)
        # Half a pixel over the edge is rounding.
        return bool(min(x, y) < -0.5 or x + width > size[1] + 0.5 or y + height > size[0] + 0.5)

    def _unique(self, name: str) -> None:
        ids = Counter(entry["id"] for entry in self.content[name])
        id_, times = ids.most_common(1)[0] if ids else (0, 0)
        if times > 1:
            raise ValueError(
                f'{self.path}: id {id_} stands {times} times in "{name}"; once is allowed'
            )

    def _fail(self, where: str, name: str, value: object, allowed: str) -> NoReturn:
        text = "missing" if value is None else repr(value)
        raise ValueError(f"{self.path}: {where}: {name} is {text}; allowed is {allowed}")


def _corners(box: Iterable[float | int], size: Size) -> tuple[float, float, float, float]:
    """(x, y, width, height) -> (x1, y1, x2, y2), clipped to the picture."""
    x, y, width, height = map(float, box)
    return max(x, 0.0), max(y, 0.0), min(x + width, float(size[1])), min(y + height, float(size[0]))


def _hashable(value: object) -> Any:
    return value if isinstance(value, int) else None
