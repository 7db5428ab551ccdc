"""The content of a COCO json in flat arrays, and their file."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, fields
from io import BufferedRandom
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec
import numpy as np
from numpy.lib import format as npy

from condseg.data.masks import Segmentation
from condseg.structures import Category, Size

IMAGE: Final = np.dtype(
    [("id", "<i8"), ("size", "<i4", 2), ("text", "<i8"), ("name", "<i4"), ("depth", "<i4"),
     ("first", "<i8"), ("count", "<i8")]
)  # fmt: skip
"""``text`` is where in the data ``name`` bytes of the file's name and ``depth`` bytes of the depth
map's are; the objects are ``count`` from ``first`` on."""

OBJECT: Final = np.dtype(
    [("id", "<i8"), ("image", "<i4"), ("label", "<i4"), ("crowd", "?"), ("clipped", "?"),
     ("mask", "u1"), ("outside", "?"), ("area", "<f8"), ("box", "<f8", 4), ("visibility", "<f8"),
     ("start", "<i8"), ("length", "<i4")]
)  # fmt: skip
"""NaN is a field that the json lacks; ``box`` is (x, y, width, height). ``mask`` is one of the
states below; the segmentation in MessagePack, or why there is none as a text, are ``length`` bytes
from ``start`` on."""

NO_MASK, MASK, INVALID_MASK = range(3)
_DIGEST = 32  # bytes of a SHA-256


@dataclass(frozen=True, slots=True)
class Index:
    """A COCO json whose content has been checked, see :mod:`condseg.data.annotations`.

    Attributes:
        path: the json.
        categories: that of label k at position k.
        images: (n,) of IMAGE, in the order of the json.
        objects: (m,) of OBJECT, by image.
        data: bytes of texts and segmentations.
        sha256: of the json, in hexadecimal.
        sizes_of_files: number of images whose size is the file's, since the json has none.
        place: the file that is mapped.
    """

    path: Path
    categories: tuple[Category, ...]
    images: np.ndarray
    objects: np.ndarray
    data: np.ndarray
    sha256: str
    sizes_of_files: int = 0
    place: Path | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """A spawned worker maps the same file."""
        if self.place is not None:
            return _map_again, (self.place, self.path, self.sha256)
        return Index, tuple(getattr(self, field.name) for field in fields(self))

    @property
    def has_masks(self) -> bool:
        """Whether any object has a segmentation, or there are no objects."""
        return not len(self.objects) or bool((self.objects["mask"] != NO_MASK).any())

    def size(self, image: int) -> Size:
        height, width = self.images["size"][image].tolist()
        return height, width

    def file_name(self, image: int) -> str:
        entry = self.images[image]
        return self._text(int(entry["text"]), int(entry["name"]))

    def depth_file(self, image: int) -> str | None:
        entry = self.images[image]
        return self._text(int(entry["text"] + entry["name"]), int(entry["depth"])) or None

    def segmentation(self, number: int) -> Segmentation:
        """The mask of an object whose state is MASK."""
        start, length = self.objects["start"][number], self.objects["length"][number]
        found: Segmentation = msgspec.msgpack.decode(self.data[start : start + length].tobytes())
        return found

    def where(self, number: int) -> str:
        """An object and its image for a message."""
        entry = self.objects[number]
        image = int(entry["image"])
        image_id = self.images["id"][image]
        return f"annotation {entry['id']} (image {image_id}, {self.file_name(image)})"

    def problem(self, number: int) -> str:
        """Why an object has no mask."""
        entry = self.objects[number]
        return self._text(int(entry["start"]), int(entry["length"]))

    def _text(self, start: int, length: int) -> str:
        return self.data[start : start + length].tobytes().decode("utf-8", "surrogatepass")

    def save(self, file: BufferedRandom, facts: list[int]) -> None:
        """Writes the SHA-256 of what follows, and arrays in npy format one after the other."""
        categories = [asdict(category) for category in self.categories]
        head = {"facts": facts, "categories": categories, "sha256": self.sha256}
        file.write(bytes(_DIGEST))
        head_array = np.frombuffer(msgspec.json.encode(head), np.uint8)
        for array in (head_array, self.images, self.objects, self.data):
            npy.write_array(file, array)
        file.seek(_DIGEST)
        digest = hashlib.file_digest(file, "sha256").digest()
        file.seek(0)
        file.write(digest)

    @staticmethod
    def load(place: Path, path: Path) -> tuple[Index, list[int]]:
        """Maps a file of :meth:`save`, which all processes that map it share.

        Args:
            place: the file.
            path: the json.

        Returns:
            The index and the facts that were saved with it.

        Raises:
            OSError: there is no such file.
            ValueError: it is damaged.
        """
        with place.open("rb") as file:
            digest = file.read(_DIGEST)
            if hashlib.file_digest(file, "sha256").digest() != digest:
                raise ValueError(f"{place}: the content has another SHA-256")
            file.seek(_DIGEST)
            head, images, objects, data = (_map(file) for _ in range(4))
        content = msgspec.json.decode(head.tobytes())
        categories = tuple(Category(**category) for category in content["categories"])
        index = Index(path, categories, images, objects, data, content["sha256"], 0, place)
        return index, content["facts"]


def _map_again(place: Path, path: Path, sha256: str) -> Index:
    index, _ = Index.load(place, path)
    if index.sha256 != sha256:
        raise ValueError(f"{path}: has been changed since this process opened it")
    return index


def _map(file: BinaryIO) -> np.ndarray:
    """The next array of the file, which is not read before it is used."""
    npy.read_magic(file)
    shape, _, dtype = npy.read_array_header_1_0(file)
    if 0 in shape:  # nothing cannot be mapped
        return np.zeros(shape, dtype)
    start = file.tell()
    array = np.memmap(file, dtype, "r", start, shape)
    file.seek(start + array.nbytes)
    return array.view(np.ndarray)
