"""Instances as files of COCO."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from pycocotools import mask as rle

from condseg.inference import Outline
from condseg.inference.instances import Instances
from condseg.structures import Category


@dataclass(frozen=True, slots=True)
class Entry:
    """An image, or a frame of a video, and its instances.

    Attributes:
        file: path or address of the image.
        name: of its own among all entries, for files about it.
        found: the instances.
        video: path or address of its video.
        frame: its number in the video, from 0.
    """

    file: str
    name: str
    found: Instances
    video: str | None = None
    frame: int = 0


@runtime_checkable
class Writer(Protocol):
    """What writes a format."""

    def add(self, entry: Entry) -> None:
        """Takes the next image."""

    def close(self) -> None:
        """Writes what is not written yet."""


class CocoWriter:
    """A json with images, categories, and annotations with scores.

    Args:
        path: the file.
        categories: of class k at position k.
        dataset: the annotations are those of a dataset, with the masks' areas and boxes; else
            records of COCO's results format, with the predicted boxes.
        outline: of a dataset: "polygon", which has no holes, or "rle". Results are RLE.
    """

    def __init__(
        self, path: Path, categories: Sequence[Category], *, dataset: bool, outline: Outline
    ) -> None:
        self.path, self.dataset, self.outline = path, dataset, outline
        self.categories = categories
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.videos: dict[str, int] = {}

    def add(self, entry: Entry) -> None:
        """Takes the next image; its id is its number, from 1."""
        number, (height, width) = len(self.images) + 1, entry.found.size
        image = {"id": number, "file_name": entry.file, "height": height, "width": width}
        if entry.video is not None:
            video = self.videos.setdefault(entry.video, len(self.videos) + 1)
            image |= {"video_id": video, "frame_index": entry.frame}
        self.images.append(image)
        tracks = entry.found.tracks
        for i, record in enumerate(entry.found.to_coco(number)):
            if self.dataset:
                record |= self._of_dataset(record["segmentation"], entry.found[i])
            if tracks is not None:
                record["track_id"] = int(tracks[i])
            self.annotations.append({"id": len(self.annotations) + 1, **record})

    def _of_dataset(self, code: dict[str, Any], found: Instances) -> dict[str, Any]:
        polygons = [outline.ravel().tolist() for outline in found.polygons()[0]]
        return {
            # A mask without pixels has no polygon.
            "segmentation": polygons if self.outline == "polygon" and polygons else code,
            "bbox": rle.toBbox(code).tolist(),
            "area": int(rle.area(code)),
            "iscrowd": 0,
        }

    def close(self) -> None:
        """Writes the file."""
        videos = [{"id": number, "name": name} for name, number in self.videos.items()]
        content = {
            **({"videos": videos} if videos else {}),
            "images": self.images,
            "annotations": self.annotations,
            "categories": [{"id": c.id, "name": c.name} for c in self.categories],
        }
        write_json(self.path, content)


def write_json(path: Path, content: Any) -> None:
    """Writes a json as UTF-8, also with file names that are not."""
    # A file name that is not UTF-8 contains surrogates, whose escapes are also json's.
    text = json.dumps(content, ensure_ascii=False)
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def bounds(mask: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of the smallest rectangle with all pixels of a mask that has some."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
