"""Picture files in, picture files with the found instances drawn in out."""

from __future__ import annotations

import glob
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from condseg.data.images import read_depth, read_image
from condseg.evaluation import to_records
from condseg.inference.drawing import draw, legible_scale
from condseg.inference.predictor import Predictor
from condseg.structures import Detections, ImageInfo

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm"}


def find_pictures(inputs: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The picture files that the inputs mean, each once, and the inputs that mean none.

    A folder stands for the pictures directly in it, a pattern (``*``, ``?``, ``[...]``, ``**``) for
    those that match, by the suffixes that picture files have; a file that is named stands for
    itself.
    """
    found: dict[Path, Path] = {}
    without = []
    for text in inputs:
        path = Path(text)
        if path.is_file():
            matches = [path]
        else:
            paths = path.iterdir() if path.is_dir() else map(Path, glob.glob(text, recursive=True))
            matches = sorted(p for p in paths if p.is_file() and p.suffix.lower() in SUFFIXES)
        if not matches:
            without.append(text)
        for match in matches:
            found.setdefault(match.resolve(), match)
    return list(found.values()), without


def find_depths(
    predictor: Predictor, pictures: Sequence[Path], depth: str | Path | None
) -> list[Path | None]:
    """The depth map of each picture, where the predictor's network takes depth.

    Args:
        predictor: the model.
        pictures: files.
        depth: the depth map of the one picture, or a folder in which each picture's has its name
            and the suffix .png.

    Raises:
        ValueError: the network takes depth and none is given, or the other way round; or two
            pictures would share a depth map.
    """
    if depth is None:
        if predictor.network.takes_depth:
            raise ValueError(
                "the checkpoint's network takes depth; --depth is needed: the depth map (16-bit "
                "PNG) of the one picture, or a folder in which each picture's has its name"
            )
        return [None] * len(pictures)
    if not predictor.network.takes_depth:
        raise ValueError(f"depth is {str(depth)!r}, but the checkpoint's network takes none")
    place = Path(depth)
    in_folder = place.is_dir()
    maps: list[Path | None] = [place / f"{p.stem}.png" if in_folder else place for p in pictures]
    times = Counter(maps)
    shared = [str(p) for p, path in zip(pictures, maps, strict=True) if times[path] > 1]
    if shared:
        raise ValueError(
            f"depth is {str(depth)!r}, in which {', '.join(shared[:3])} have the same depth map; "
            "one for each is allowed"
        )
    return maps


def read_pair(
    picture: Path, depth: Path | None
) -> tuple[NDArray[np.uint8], NDArray[np.uint16] | None]:
    """A picture and its depth map; None where there is no file of it.

    Raises:
        ValueError: a file cannot be read, or their sizes differ.
    """
    image: NDArray[np.uint8] = read_image(picture)
    if depth is None:
        return image, None
    try:
        return image, read_depth(depth, (image.shape[0], image.shape[1]))
    except ValueError as error:
        raise ValueError(f"{picture}: {error}") from error


def output_paths(pictures: Sequence[Path], folder: Path) -> list[Path]:
    """Where each picture's drawing goes: ``folder``, its own name, .jpg for JPEGs, else .png.

    Pictures of the same name from different folders get ``name_2``, ``name_3``; none of the
    pictures themselves is overwritten.
    """
    taken = {picture.resolve() for picture in pictures}
    paths = []
    for picture in pictures:
        suffix = ".jpg" if picture.suffix.lower() in (".jpg", ".jpeg") else ".png"
        path, number = folder / (picture.stem + suffix), 1
        while path.resolve() in taken:
            number += 1
            path = folder / f"{picture.stem}_{number}{suffix}"
        taken.add(path.resolve())
        paths.append(path)
    return paths


def annotate(
    predictor: Predictor,
    inputs: Sequence[str],
    output: str | Path = "out",
    score: float = 0.4,
    write_json: bool = False,
    depth: str | Path | None = None,
) -> int:
    """Finds the instances of each picture, draws them, and prints what was found.

    A small picture is enlarged, so that labels do not crowd it out. One that cannot be read is
    reported, and the others are still done.

    Args:
        predictor: the model.
        inputs: files, folders, patterns.
        output: folder of the drawings, and of ``detections.json``.
        score: instances below it are neither drawn nor written.
        write_json: write the instances in COCO's format, too.
        depth: depth map of the one picture, or a folder of them, see :func:`find_depths`.

    Returns:
        How many inputs could not be done.

    Raises:
        ValueError: no input means a picture, ``score`` is outside its range, or the network
            takes depth and there is none.
    """
    if not 0 <= score <= 1:
        raise ValueError(f"score is {score}; 0..1 is allowed")
    pictures, without = find_pictures(inputs)
    if not pictures:
        raise ValueError(f"found no pictures in {', '.join(map(repr, without))}")
    errors = [f"found no pictures in {text!r}" for text in without]
    depths = find_depths(predictor, pictures, depth)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    records: list[dict[str, Any]] = []
    for number, (picture, depth_map, target) in enumerate(
        zip(pictures, depths, output_paths(pictures, folder), strict=True), start=1
    ):
        try:
            image, distances = read_pair(picture, depth_map)
        except ValueError as error:
            errors.append(str(error))
            continue
        start = time.perf_counter()
        found = predictor(image, distances)
        seconds = time.perf_counter() - start
        size = height, width = image.shape[:2]
        shown = above(found, score)
        drawn = draw(image, shown, predictor.names, scale=legible_scale(height, width))
        Image.fromarray(drawn).save(target, quality=92)
        print(f"{picture}: {describe(shown, predictor.names)} ({seconds:.2f} s) -> {target}")
        if len(found) > len(shown) == 0:
            best = f"{predictor.names[int(found.labels[0])]} {float(found.scores[0]):.2f}"
            print(f"  nothing reaches --score {score:g}; the best is {best}")
        info = ImageInfo(number, str(picture), size, size)
        images.append({"id": number, "file_name": str(picture), "height": height, "width": width})
        records += to_records(info, shown, predictor.categories)
    if write_json:
        content = {
            "images": images,
            "annotations": [{"id": i, **record} for i, record in enumerate(records, start=1)],
            "categories": [{"id": c.id, "name": c.name} for c in predictor.categories],
        }
        text = json.dumps(content, ensure_ascii=False)
        (folder / "detections.json").write_text(text, encoding="utf-8")
    for message in errors:
        print(f"error: {message}", file=sys.stderr)
    return len(errors)


def above(found: Detections, score: float) -> Detections:
    """The detections with that score or more."""
    keep = found.scores >= score
    return Detections(found.boxes[keep], found.scores[keep], found.labels[keep], found.masks[keep])


def describe(found: Detections, names: Sequence[str]) -> str:
    """Counts and scores of each class: "2 cup (0.98, 0.71), 1 fork (0.60)"."""
    scores: dict[str, list[float]] = defaultdict(list)
    for label, score in zip(found.labels.tolist(), found.scores.tolist(), strict=True):
        scores[names[label]].append(score)
    return ", ".join(f"{len(s)} {name} ({_range(s)})" for name, s in scores.items()) or "nothing"


def _range(scores: Iterable[float]) -> str:
    shown = [f"{score:.2f}" for score in scores]
    return ", ".join(shown) if len(shown) <= 5 else f"{shown[0]} to {shown[-1]}"
