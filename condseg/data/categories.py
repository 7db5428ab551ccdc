"""The categories of a COCO-format json, read without pycocotools or albumentations."""

from __future__ import annotations

import json
import reprlib
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from condseg.data.parts import part_of, take_part
from condseg.structures import Category

_REPR = reprlib.Repr()
_REPR.maxstring = 80


def read_categories(annotation_file: str | Path) -> tuple[Category, ...]:
    """Reads the categories of a COCO-format json, sorted by id.

    Raises:
        ValueError: the file or its categories are invalid.
    """
    path = Path(annotation_file)
    return parse_categories(path, load_coco_json(path))


def load_coco_json(path: Path) -> dict[str, Any]:
    """Loads a json, or a part of it, with COCO's lists and an integer id of each entry.

    Raises:
        ValueError: the file is missing, no json, or lacks a list, an id or any category.
    """
    path, part = part_of(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such annotation file")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:  # also a number of more digits than Python converts
        size = path.stat().st_size
        raise ValueError(f"{path}: not a valid json ({size} bytes, truncated?): {error}") from error
    except RecursionError as error:
        raise ValueError(f"{path}: lists or objects are nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: is a {type(content).__name__}; a COCO json is an object")
    for name in ("images", "annotations", "categories"):
        if not isinstance(content.get(name), list):
            problem = "missing" if name not in content else "not a list"
            raise ValueError(
                f'{path}: "{name}" is {problem}; a COCO json has the lists "images", '
                '"annotations" and "categories"'
            )
        for position, entry in enumerate(content[name]):
            _read_whole_floats(entry)
            number = entry.get("id") if isinstance(entry, dict) else None
            if type(number) is not int or not -(2**63) <= number < 2**63:
                raise ValueError(
                    f'{path}: entry {position} of "{name}" has no integer "id" of up to 64 bits'
                )
    if not content["categories"]:
        raise ValueError(f'{path}: "categories" is empty; at least one category is required')
    return content if part is None else take_part(path, content, part)


def _read_whole_floats(entry: Any) -> None:
    """Replaces 1.0 by 1 where an integer is needed: some tools write all numbers as floats."""
    if isinstance(entry, dict):
        for key in ("id", "image_id", "category_id", "height", "width"):
            value = entry.get(key)
            if type(value) is float and value.is_integer() and abs(value) < 2**53:
                entry[key] = int(value)


def parse_categories(path: Path, content: dict[str, Any]) -> tuple[Category, ...]:
    """The checked categories of a loaded json, sorted by id."""
    check_unique_ids(path, content, "categories")
    for entry in content["categories"]:
        if not isinstance(entry.get("name"), str):
            fail(path, f"category {entry['id']}", "name", entry.get("name"), "a string")
    entries = sorted(content["categories"], key=lambda entry: int(entry["id"]))
    return tuple(Category(entry["id"], entry["name"]) for entry in entries)


def check_unique_ids(path: Path, content: dict[str, Any], name: str) -> None:
    """Raises ValueError if an id occurs more than once in the list ``name``."""
    ids = Counter(entry["id"] for entry in content[name])
    repeated, times = ids.most_common(1)[0] if ids else (0, 0)
    if times > 1:
        raise ValueError(f'{path}: id {repeated} occurs {times} times in "{name}"; ids are unique')


def fail(path: Path, where: str, name: str, value: object, allowed: str) -> NoReturn:
    """Raises the ValueError of an invalid entry: file, id, field, value and what is allowed."""
    text = "missing" if value is None else short(value)
    raise ValueError(f"{path}: {where}: {name} is {text}; allowed is {allowed}")


def short(value: object) -> str:
    """A value of a json for a message: long or deeply nested ones are abbreviated."""
    return _REPR.repr(value)
