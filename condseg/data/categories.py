"""A COCO-format json and its categories, read without pycocotools or albumentations."""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from condseg.data.parts import part_of, take_part
from condseg.structures import Category

Entry = dict[str, Any]
LISTS = ("images", "annotations", "categories")
_REPR = reprlib.Repr()
_REPR.maxstring = 80
# What msgspec refuses or cannot represent: the standard library decides on it.
_REFUSED = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


@dataclass(frozen=True, slots=True)
class CocoJson:
    """COCO's lists of a json, or of a part of it; each entry has an integer id.

    Attributes:
        path: the file.
        images, categories: their entries.
    """

    path: Path
    images: list[Entry]
    categories: list[Entry]
    _text: bytes
    _annotations: list[Any]
    _skipped: set[int]

    @property
    def sha256(self) -> str:
        """Of the file, in hexadecimal."""
        return hashlib.sha256(self._text).hexdigest()

    def annotations(self) -> Iterator[Entry]:
        """Decodes one entry after the other, since all take five times the memory of the text.

        Raises:
            ValueError: an entry is no json, or has no integer id.
        """
        for position, entry in enumerate(self._decoded()):
            _check_entry(self.path, "annotations", position, entry)
            image_id = entry.get("image_id")
            if type(image_id) is not int or image_id not in self._skipped:
                yield entry

    def _decoded(self) -> Iterator[Any]:
        for position, entry in enumerate(self._annotations):
            try:
                yield msgspec.json.decode(entry) if isinstance(entry, msgspec.Raw) else entry
            except _REFUSED:
                yield from _load(self.path, self._text)["annotations"][position:]
                return


def load_coco_json(path: Path) -> CocoJson:
    """Loads a json, or a part of it.

    Raises:
        ValueError: the file is missing, no json, or lacks a list, an id or any category.
    """
    path, part = part_of(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such annotation file")
    text = path.read_bytes()
    try:
        content = _split(text)
    except _REFUSED:
        content = _load(path, text)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: is a {type(content).__name__}; a COCO json is an object")
    for name in LISTS:
        if not isinstance(content.get(name), list):
            problem = "missing" if name not in content else "not a list"
            raise ValueError(
                f'{path}: "{name}" is {problem}; a COCO json has the lists "images", '
                '"annotations" and "categories"'
            )
        for position, entry in enumerate(content[name] if name != "annotations" else ()):
            _check_entry(path, name, position, entry)
    if not content["categories"]:
        raise ValueError(f'{path}: "categories" is empty; at least one category is required')
    images, skipped = content["images"], set[int]()
    if part is not None:
        images, skipped = take_part(path, images, part)
    return CocoJson(path, images, content["categories"], text, content["annotations"], skipped)


def _split(text: bytes) -> Entry:
    """Decodes all but the entries of "annotations"."""
    content: Entry = {}
    for name, value in msgspec.json.decode(text, type=dict[str, msgspec.Raw]).items():
        is_long = name == "annotations" and bytes(memoryview(value)[:1]) == b"["
        content[name] = msgspec.json.decode(value, type=list[msgspec.Raw] if is_long else Any)
    return content


def _load(path: Path, text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:  # also a number of more digits than Python converts
        raise ValueError(
            f"{path}: not a valid json ({len(text)} bytes, truncated?): {error}"
        ) from error
    except RecursionError as error:
        raise ValueError(f"{path}: lists or objects are nested too deeply") from error


def _check_entry(path: Path, name: str, position: int, entry: Any) -> None:
    _read_whole_floats(entry)
    number = entry.get("id") if isinstance(entry, dict) else None
    if type(number) is not int or not -(2**63) <= number < 2**63:
        raise ValueError(
            f'{path}: entry {position} of "{name}" has no integer "id" of up to 64 bits'
        )


def _read_whole_floats(entry: Any) -> None:
    """Replaces 1.0 by 1 where an integer is needed: some tools write all numbers as floats."""
    if isinstance(entry, dict):
        for key in ("id", "image_id", "category_id", "height", "width"):
            value = entry.get(key)
            if type(value) is float and value.is_integer() and abs(value) < 2**53:
                entry[key] = int(value)


def read_categories(annotation_file: str | Path) -> tuple[Category, ...]:
    """Reads the categories of a COCO-format json, sorted by id.

    Raises:
        ValueError: the file or its categories are invalid.
    """
    path = Path(annotation_file)
    return parse_categories(path, load_coco_json(path).categories)


def parse_categories(path: Path, entries: list[Entry]) -> tuple[Category, ...]:
    """The checked categories of a json, sorted by id."""
    check_unique_ids(path, "categories", [entry["id"] for entry in entries])
    for entry in entries:
        if not isinstance(entry.get("name"), str):
            fail(path, f"category {entry['id']}", "name", entry.get("name"), "a string")
    return tuple(sorted((Category(e["id"], e["name"]) for e in entries), key=lambda c: c.id))


def check_unique_ids(path: Path, name: str, ids: list[int]) -> None:
    """Raises ValueError if an id of the list ``name`` occurs more than once."""
    if len(set(ids)) < len(ids):
        repeated, times = Counter(ids).most_common(1)[0]
        raise ValueError(f'{path}: id {repeated} occurs {times} times in "{name}"; ids are unique')


def fail(path: Path, where: str, name: str, value: object, allowed: str) -> NoReturn:
    """Raises the ValueError of an invalid entry: file, id, field, value and what is allowed."""
    text = "missing" if value is None else short(value)
    raise ValueError(f"{path}: {where}: {name} is {text}; allowed is {allowed}")


def short(value: object) -> str:
    """A value of a json for a message: long or deeply nested ones are abbreviated."""
    return _REPR.repr(value)
