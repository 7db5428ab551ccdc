"""The images: for training, for choosing the learning rates, and for the final test."""

from __future__ import annotations

import fcntl
import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from condseg.data.files import find_files
from studies.report import write_json

SEED = 1
"""Of the generated scenes; those of the package have seed 0, and choices have been made on them."""
GENERATOR = Path(__file__).parents[2] / "make_tabletop.py"


@dataclass(frozen=True, slots=True)
class Sets:
    """Training and tuning images are disjoint parts of one set, test images are a set of their own.

    Attributes:
        folder: of the annotations written for this comparison.
        images: folder of the training and tuning images.
        test_images: folder of the test images.
        tests: number of test images.
    """

    folder: Path
    images: Path
    test_images: Path
    tests: int

    def arguments(self, images: int, part: str) -> list[str]:
        """Arguments of a training on so many images, judged on the "tuning" or "test" images."""
        values = {
            "train_annotations": self.folder / f"train_{images}.json",
            "train_images": self.images,
            "val_annotations": self.folder / f"{part}.json",
            "val_images": self.test_images if part == "test" else self.images,
        }
        return [f"--data.{key}={value.resolve()}" for key, value in values.items()]


def split(
    root: Path,
    output: Path,
    tuning: int,
    sizes: Sequence[int],
    tests: int | None = None,
    shuffle: bool = True,
) -> Sets:
    """Write the annotations of the tuning images, of the training sets and of the test images.

    The test images are the validation images of the data set. Of its training images, the first
    are the tuning images; a small training set is the beginning of a larger one.

    Args:
        root: a data set in COCO format, see ``DataModule``.
        output: folder of the annotations.
        tuning: number of tuning images.
        sizes: numbers of training images.
        tests: number of test images, the first ones; None for all.
        shuffle: whether the order of the training images is drawn, with a fixed seed.

    Raises:
        DataNotFoundError: files are missing.
        ValueError: the set has too few training images.
    """
    (annotations, images), test = (find_files(root, part, None, None) for part in ("train", "val"))
    content, test_content = (
        json.loads(path.read_text(encoding="utf-8")) for path in (annotations, test[0])
    )
    entries = content["images"]
    if tuning + max(sizes) > len(entries):
        raise ValueError(
            f"budgets: {max(sizes)} training images and {tuning} tuning images are more than the "
            f"{len(entries)} of {annotations}"
        )
    if shuffle:
        random.Random(SEED).shuffle(entries)
    _write(content, entries[:tuning], output / "tuning.json")
    for size in sizes:
        _write(content, entries[tuning : tuning + size], output / f"train_{size}.json")
    judged = test_content["images"][:tests]
    _write(test_content, judged, output / "test.json")
    return Sets(output, images, test[1], len(judged))


def _write(content: dict[str, Any], entries: list[dict[str, Any]], path: Path) -> None:
    """Write the part of a COCO file that belongs to these images."""
    ids = {entry["id"] for entry in entries}
    objects = [a for a in content["annotations"] if a["image_id"] in ids]
    write_json(content | {"images": entries, "annotations": objects}, path)


def generate(train: int, test: int, styles: int, workers: int) -> Path:
    """The folder of generated scenes; those that are missing are rendered.

    It is ``$XDG_CACHE_HOME/condseg/tabletop`` (or below ``~/.cache``): rendering takes seconds an
    image, and all comparisons use the same scenes. With several styles it is ``tabletop_<styles>``.

    Raises:
        ValueError: the generator has failed; it has said why.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "condseg"
    folder = cache / ("tabletop" if styles == 1 else f"tabletop_{styles}")
    folder.mkdir(parents=True, exist_ok=True)
    wanted: dict[str, int] = {"train": train, "val": test}
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        there = {name: _count(folder / f"instances_{name}.json") for name in wanted}
        if any(there[name] < count for name, count in wanted.items()):
            print(f"rendering {train} + {test} scenes into {folder}", flush=True)
            options: dict[str, Any] = wanted | {"seed": SEED, "styles": styles, "workers": workers}
            command = [sys.executable, str(GENERATOR), str(folder), "--resume"]
            command += [f"--{name}={value}" for name, value in options.items()]
            if code := subprocess.run(command, check=False).returncode:
                raise ValueError(f"make_tabletop.py ended with code {code}")
    return folder


def _count(path: Path) -> int:
    return len(json.loads(path.read_text(encoding="utf-8"))["images"]) if path.is_file() else 0
