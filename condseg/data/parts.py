"""A json without a second one, divided into a training and a validation set.

``annotations.json@val`` names a fifth of the images of ``annotations.json``, at least one, and
``annotations.json@train`` the others. They are chosen by a hash of the image id, so that the same
file is always divided alike.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

PARTS = ("train", "val")
VAL_ONE_IN = 5
"""One image in this many is for validation."""


def part_of(path: Path) -> tuple[Path, str | None]:
    """The file of a path, and which of the ``PARTS`` of it is meant; None is all of it."""
    name, _, part = path.name.rpartition("@")
    return (path.with_name(name), part) if name and part in PARTS else (path, None)


def take_part(
    path: Path, images: list[dict[str, Any]], part: str
) -> tuple[list[dict[str, Any]], set[int]]:
    """The images of a part, and the ids of the others.

    Annotations of unknown images belong to both parts, where they are an error.

    Raises:
        ValueError: there is only one image.
    """
    ids = sorted((image["id"] for image in images), key=_hash)
    if len(ids) < 2:
        raise ValueError(f"{path}: has {len(ids)} images; a division needs 2 or more")
    count = max(1, len(ids) // VAL_ONE_IN)
    others = set(ids[count:] if part == "val" else ids[:count])
    return [image for image in images if image["id"] not in others], others


def _hash(image_id: int) -> bytes:
    return hashlib.sha256(str(image_id).encode()).digest()
