"""Where the files of a data set are: named by options, or found by what a folder contains."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from condseg.data.categories import load_coco_json
from condseg.data.parts import part_of

Split = Literal["train", "val"]
TABLETOP = Path(__file__).parent / "tabletop"
NAMES: dict[Split, tuple[str, ...]] = {"train": ("train",), "val": ("val", "valid", "validation")}
ROBOFLOW = "_annotations.coco.json"


class DataNotFoundError(FileNotFoundError):
    """Files of a data set are missing; the message says how a training names them.

    Attributes:
        problem: which are missing.
    """

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(
            f"{name}: {problem}. Own data are set by --data, a folder or a json in COCO format; "
            "'condseg download' gets COCO, and '--config tabletop' trains on the sample set"
        )
        self.problem = problem


def data_root(name: str) -> Path:
    """The folder of a data set; "tabletop" is the sample set of the package."""
    return TABLETOP if name == "tabletop" else Path(name)


def find_files(
    root: Path,
    split: Split,
    annotations: str | None,
    images: str | None,
    *,
    divide: bool = True,
) -> tuple[Path, Path]:
    """The json and the image folder of a set.

    A json is searched as ``[annotations/]instances_{split}[2017].json``, as the only json whose
    name contains the split's, in ``annotations`` or ``root``, and as Roboflow's
    ``{split}/_annotations.coco.json``. Without a validation set, a part of the training set, or of
    the only json that there is, takes its place, see :mod:`condseg.data.parts`. Images are in the
    first folder that has the first image of the json, at any depth.

    Args:
        root: the folder of a data set, or the only json.
        split: which set.
        annotations: the json; None is searched in ``root``.
        images: the folder of its images; None is searched in ``root``.
        divide: whether a json may be divided into two sets.

    Raises:
        DataNotFoundError: one of them does not exist.
        ValueError: the json is wrong.
    """
    if annotations is None and not root.exists():
        raise DataNotFoundError("data.root", f"{root} does not exist")
    folder = root.parent if root.is_file() else root
    if annotations is not None:
        json = Path(annotations)
        if not part_of(json)[0].is_file():
            raise DataNotFoundError(f"{split}_annotations", f"{json} does not exist")
    else:
        json = _find_json(root, split, divide)
    if images is None:
        return json, _find_images(folder, split, json)
    if not Path(images).is_dir():
        raise DataNotFoundError(f"{split}_images", f"{images} does not exist")
    return json, Path(images)


def _find_json(root: Path, split: Split, divide: bool) -> Path:
    train = root if root.is_file() else _json_of(root, "train")
    val = None if root.is_file() else _json_of(root, "val")
    found = train if split == "train" else val
    if divide and val is None:
        whole = train or _only(_jsons(root))
        found = whole and whole.with_name(f"{whole.name}@{split}")
    if found is not None:
        return found
    here = ", ".join(map(str, _jsons(root))) or "no json"
    raise DataNotFoundError(
        f"{split}_annotations",
        f"none of {root}/annotations/instances_{split}.json, {root}/instances_{split}.json, "
        f"{root}/{split}/{ROBOFLOW} or a single json is in {root}, which has {here}",
    )


def _json_of(root: Path, split: Split) -> Path | None:
    exact = [f"instances_{split}2017.json", f"instances_{split}.json", f"{split}.json"]
    candidates = [root / folder / name for folder in ("annotations", ".") for name in exact]
    candidates += [root / name / ROBOFLOW for name in NAMES[split]]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    return _only([path for path in _jsons(root) if split in path.stem.lower()])


def _jsons(root: Path) -> list[Path]:
    return sorted(
        path for folder in ("annotations", ".") for path in (root / folder).glob("*.json")
    )


def _only(paths: Sequence[Path]) -> Path | None:
    return paths[0] if len(paths) == 1 else None


def _find_images(root: Path, split: Split, json: Path) -> Path:
    if (root / f"{split}2017").is_dir():
        return root / f"{split}2017"  # COCO's large json need not be read for this
    whole, part = part_of(json)
    names = [f"{split}2017", *NAMES[split], "images", *(f"images/{name}" for name in NAMES[split])]
    folders = [root / name for name in names] + [whole.parent, root]
    if whole.name == ROBOFLOW or part is not None:
        folders = [whole.parent, *folders]
    try:
        entries = load_coco_json(json).images
    except ValueError:
        if part is not None:
            raise
        entries = []  # the error is raised when the set is read
    name = entries[0].get("file_name") if entries else None
    # The folders below are listed only if none of these has the image.
    for folder in itertools.chain(folders, _folders_below(root)):
        if folder.is_dir() and (not isinstance(name, str) or (folder / name).is_file()):
            return folder
    raise DataNotFoundError(
        f"{split}_images", f"no folder in {root} has the first image of {json}, {name}"
    )


def _folders_below(root: Path) -> Iterator[Path]:
    """In the order of the alphabet, those of a folder before its own."""
    for path, folders, _ in os.walk(root):
        folders.sort()
        yield from (Path(path, folder) for folder in folders)
