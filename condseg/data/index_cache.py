"""Opens a COCO json by its index, which is kept in the user's cache.

The index of a json of MIN_BYTES or more is the only file ``<name>-<digest of the path>-<digest of
the rules>.index`` in ``$XDG_CACHE_HOME/condseg/annotations``. One process writes it while others
wait. It is used while size, inode and times of the json are as they were, or its SHA-256 is.
"""

from __future__ import annotations

import functools
import hashlib
import os
import time
from pathlib import Path

from filelock import FileLock

from condseg.cache import cache_folder
from condseg.data.annotations import read_index
from condseg.data.index import Index
from condseg.data.parts import part_of

MIN_BYTES = 2**22
"""Smaller jsons are read in less than a second."""

_CLOCK = 2 * 10**9
"""Nanoseconds within which a file system may give two changes of a file the same time."""


def rank_zero_info(message: str) -> None:
    """Lightning's, which is imported here since a prediction imports no code of training."""
    from lightning.pytorch.utilities import rank_zero_info

    rank_zero_info(message)


def open_annotations(path: Path, images: Path | None = None) -> Index:
    """The checked content of a COCO json, or of a part of it.

    Args as of :func:`condseg.data.annotations.read_index`.

    Raises:
        ValueError: with the file, the id, the field, its value and what is allowed.
    """
    json, _ = part_of(path)
    if not json.is_file() or json.stat().st_size < MIN_BYTES:
        return read_index(path, images)
    try:
        place = _place(path)
        found = _stored(place, path)
        if found is None:
            with FileLock(place.with_suffix(".lock")):
                found = _stored(place, path)  # of a process that held the lock before
                found = found or _make(place, path, images)
        return found
    except OSError as error:
        reason = error.strerror or error
        rank_zero_info(f"{path}: each process reads it, since no index can be kept: {reason}")
        return read_index(path, images)


def _place(path: Path) -> Path:
    folder = cache_folder() / "annotations"
    folder.mkdir(exist_ok=True)
    digest = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
    return folder / f"{path.stem[:64]}-{digest[:16]}-{_rules()[:16]}.index"


@functools.cache
def _rules() -> str:
    """A digest of what decides on an index's content."""
    digest = hashlib.sha256()
    for name in ("annotations", "categories", "images", "index", "limits", "masks", "parts"):
        digest.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    return digest.hexdigest()


def _make(place: Path, path: Path, images: Path | None) -> Index:
    """Reads the json, and stores the index unless it depends on the images' files."""
    json, _ = part_of(path)
    facts = _facts(json)
    # Of a file that was changed just now, a later change may keep the times.
    settled = time.time_ns() - max(facts[2:]) > _CLOCK
    rank_zero_info(f"{path}: read and checked, once for all later runs")
    index = read_index(path, images)
    if index.sizes_of_files or _facts(json) != facts:
        return index
    part = place.with_suffix(".part")
    with part.open("w+b") as file:
        index.save(file, facts if settled else [])
    for old in place.parent.glob(f"{place.stem.rpartition('-')[0]}-*.index"):
        old.unlink()
    part.replace(place)
    return Index.load(place, path)[0]


def _stored(place: Path, path: Path) -> Index | None:
    """The stored index, unless it is missing, damaged, or of another content of the json."""
    try:
        index, facts = Index.load(place, path)
    except (FileNotFoundError, ValueError):
        return None
    json, _ = part_of(path)
    if facts == _facts(json):
        return index
    with json.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return index if index.sha256 == digest else None


def _facts(json: Path) -> list[int]:
    """Size, inode, and times of the last change of the content and of the inode."""
    with json.open("rb") as file:  # so that a network file system asks its server
        status = os.fstat(file.fileno())
    return [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]
