"""Draws the predicted instances into image files, and writes them as COCO records."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from condseg.evaluation import to_records
from condseg.inference import SCORE_THRESHOLD, ColorBy
from condseg.inference.drawing import draw, legible_scale
from condseg.inference.instances import describe
from condseg.inference.predictor import Predictor
from condseg.inference.sources import find_depths, find_images, read_pair
from condseg.structures import ImageInfo


def output_paths(images: Sequence[Path], folder: Path) -> list[Path]:
    """The file to write for each image: its name in ``folder``, .jpg for JPEGs, else .png.

    Images of the same name from different folders become ``name_2``, ``name_3``; no input is
    overwritten.
    """
    taken = {image.resolve() for image in images}
    paths = []
    for image in images:
        suffix = ".jpg" if image.suffix.lower() in (".jpg", ".jpeg") else ".png"
        path, number = folder / (image.stem + suffix), 1
        while path.resolve() in taken:
            number += 1
            path = folder / f"{image.stem}_{number}{suffix}"
        taken.add(path.resolve())
        paths.append(path)
    return paths


def annotate(
    predictor: Predictor,
    inputs: Sequence[str],
    output: str | Path = "out",
    score: float = SCORE_THRESHOLD,
    write_json: bool = False,
    depth: str | Path | None = None,
    color_by: ColorBy = "instance",
) -> int:
    """Predicts the instances of each image, draws them, and prints one line per image.

    Small images are enlarged, so that their labels fit. A file that cannot be read or drawn is
    reported, and the others are still processed.

    Args:
        predictor: the model.
        inputs: files, folders, patterns.
        output: folder of the drawn images and of ``detections.json``.
        score: min score of the instances that are drawn and written.
        write_json: also write the instances in COCO's format.
        depth: see :func:`find_depths`.
        color_by: see :func:`condseg.inference.drawing.draw`.

    Returns:
        The number of inputs that could not be processed.

    Raises:
        ValueError: there is no image, ``score`` is outside its range, or :func:`find_depths`.
    """
    if not 0 <= score <= 1:
        raise ValueError(f"score is {score}; 0..1 is allowed")
    files, without = find_images(inputs)
    if not files:
        raise ValueError(f"no images in {', '.join(map(repr, without))}")
    errors = [f"no images in {text!r}" for text in without]
    depths = find_depths(predictor, files, depth)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    records: list[dict[str, Any]] = []
    for number, (file, depth_file, target) in enumerate(
        zip(files, depths, output_paths(files, folder), strict=True), start=1
    ):
        try:
            image, depth_map = read_pair(file, depth_file)
            start = time.perf_counter()
            detections = predictor(image, depth_map)
            seconds = time.perf_counter() - start
            size = height, width = image.shape[:2]
            shown = detections.above(score)
            scale = legible_scale(height, width)
            drawn = draw(image, shown, predictor.names, scale=scale, color_by=color_by)
            _save(drawn, target)
        except ValueError as error:
            errors.append(str(error))
            continue
        labels, scores = shown.labels.tolist(), shown.scores.tolist()
        what = describe(labels, scores, predictor.categories)
        print(f"{file}: {what} ({seconds:.2f} s) -> {target}")
        if len(detections) > len(shown) == 0:
            best = f"{predictor.names[int(detections.labels[0])]} {float(detections.scores[0]):.2f}"
            print(f"  nothing reaches --score {score:g}; the best is {best}")
        info = ImageInfo(number, str(file), size, size)
        images.append({"id": number, "file_name": str(file), "height": height, "width": width})
        records += to_records(info, shown, predictor.categories)
    if write_json:
        content = {
            "images": images,
            "annotations": [{"id": i, **record} for i, record in enumerate(records, start=1)],
            "categories": [{"id": c.id, "name": c.name} for c in predictor.categories],
        }
        text = json.dumps(content, ensure_ascii=False)
        # A file name that is not UTF-8 contains surrogates, whose escapes are also json's.
        target = folder / "detections.json"
        target.write_text(text, encoding="utf-8", errors="backslashreplace")
    for message in errors:
        print(f"error: {message}", file=sys.stderr)
    return len(errors)


def _save(drawn: NDArray[np.uint8], target: Path) -> None:
    try:
        Image.fromarray(drawn).save(target, quality=92)
    except OSError as error:
        if error.errno is not None:  # of the system, which concerns all files
            raise
        raise ValueError(f"{target}: cannot be written: {error}") from error
