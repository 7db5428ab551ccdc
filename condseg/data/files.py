"""Where the files of a data set are searched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

TABLETOP = Path(__file__).parent / "tabletop"


class DataNotFoundError(FileNotFoundError):
    """Files of a data set are missing; the message says how to get or name them."""


def data_root(name: str) -> Path:
    """The folder of a data set; "tabletop" is the sample set of the package."""
    return TABLETOP if name == "tabletop" else Path(name)


def find_files(
    root: Path, split: Literal["train", "val"], annotations: str | None, images: str | None
) -> tuple[Path, Path]:
    """The json and the image folder of a set; None is searched in ``root``, see ``DataModule``.

    Raises:
        DataNotFoundError: one of them does not exist.
    """
    names = (f"instances_{split}2017.json", f"instances_{split}.json")
    jsons = [root / folder / name for folder in ("annotations", ".") for name in names]
    folders = [root / name for name in (f"{split}2017", split, "images")]
    return (
        _first(f"{split}_annotations", annotations, jsons, Path.is_file),
        _first(f"{split}_images", images, folders, Path.is_dir),
    )


def _first(
    name: str, path: str | None, candidates: list[Path], exists: Callable[[Path], bool]
) -> Path:
    paths = candidates if path is None else [Path(path)]
    for candidate in paths:
        if exists(candidate):
            return candidate
    raise DataNotFoundError(
        f"{name}: none of {', '.join(map(str, paths))} exists. Either download COCO with "
        "`python tools/download_coco.py`, or train on the embedded set with `--config "
        f"tabletop.yaml`; own data are set by data.root or data.{name}"
    )
