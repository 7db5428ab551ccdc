"""COCO ground truth for pycocotools, restricted by visibility and matched to a model's classes."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pycocotools import mask as rle
from pycocotools.coco import COCO

from condseg.data.index_cache import open_annotations
from condseg.data.masks import compressed
from condseg.data.records import Records
from condseg.structures import Category

NO_MASKS = "box AP alone, since no object of this set has a segmentation"


def load_ground_truth(file: Path, images: Path | None = None) -> tuple[COCO, list[str]]:
    """A ground truth of checked entries, with the fields that pycocotools needs, and notes.

    An area or a box that the file lacks is that of the mask. Without any mask, only boxes can be
    evaluated; a note says so. ``images`` as of :func:`open_annotations`.
    """
    index = open_annotations(file, images)
    reads_mask = Records(index).reads_mask.tolist()
    notes: list[str] = [] if index.has_masks else [NO_MASKS]
    if (index.objects["id"] == 0).any():
        # pycocotools represents "matched with annotation 0" and "not matched" alike.
        notes.append("annotation id 0 counts here; pycocotools on the bare file never matches it")
    image_ids = index.images["id"].tolist()
    names = ("image", "label", "crowd", "area", "box", "visibility")
    columns = [index.objects[name].tolist() for name in names]
    annotations: list[dict[str, Any]] = []
    for number, (image, label, crowd, area, bbox, visibility) in enumerate(
        zip(*columns, strict=True)
    ):
        segmentation = index.segmentation(number) if reads_mask[number] else None
        if math.isnan(area) or math.isnan(bbox[0]):
            code = None if segmentation is None else compressed(segmentation, index.size(image))
            bbox = rle.toBbox(code).tolist() if math.isnan(bbox[0]) else bbox
            if math.isnan(area):
                area = bbox[2] * bbox[3] if code is None else float(rle.area(code))
        annotations.append(
            {
                "id": number + 1,
                "image_id": image_ids[image],
                "category_id": index.categories[label].id,
                "iscrowd": int(crowd),
                "area": area,
                "bbox": bbox,
                "segmentation": segmentation,
                "visibility": None if math.isnan(visibility) else visibility,
            }
        )
    truth = COCO()
    truth.dataset = {
        "images": [
            {"id": key, "file_name": index.file_name(image)}
            | dict(zip(("height", "width"), index.size(image), strict=True))
            for image, key in enumerate(image_ids)
        ],
        "annotations": annotations,
        "categories": [asdict(category) for category in index.categories],
    }
    with redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth, notes


def ignore_by_visibility(truth: COCO, visibility: tuple[float, float], file: Path) -> str:
    """Ignores the objects outside a range of visibility; returns a note on it.

    pycocotools overwrites an annotation's own ``ignore``, and a crowd may be matched repeatedly;
    but an area below all ranges of areas is ignored in each of them.
    """
    low, high = visibility
    if not 0 <= low <= high <= 1:
        raise ValueError(f"visibility is {low:g}..{high:g}; allowed is 0 <= low <= high <= 1")
    objects = [a for a in truth.dataset["annotations"] if not a["iscrowd"]]
    missing = [a for a in objects if not isinstance(a.get("visibility"), int | float)]
    if missing:
        raise ValueError(
            f"{file}: {len(missing)} of {len(objects)} objects have no visibility (a number 0..1), "
            f"the first in image {missing[0]['image_id']}; visibility {low:g}..{high:g} requires it"
        )
    ignored = [a for a in objects if not low <= a["visibility"] <= high]
    for annotation in ignored:
        annotation["area"] = -1
    return (
        f"only the {len(objects) - len(ignored)} of {len(objects)} objects with a visibility of "
        f"{low:g} to {high:g} are evaluated, the others ignored"
    )


def match_categories(
    categories: Sequence[Category], truth: COCO, file: Path
) -> tuple[list[Category | None], list[str]]:
    """The set's category of each class of the model: of the same id and name, or the same name.

    It is None for a class that the set does not have; notes name these.
    """
    by_name = {category["name"]: key for key, category in truth.cats.items()}
    matched: list[Category | None] = []
    for category in categories:
        same = truth.cats.get(category.id, {}).get("name") == category.name
        key = category.id if same else by_name.get(category.name)
        matched.append(None if key is None else Category(key, category.name))
    unknown = [c.name for c, own in zip(categories, matched, strict=True) if own is None]
    if len(unknown) == len(categories):
        raise ValueError(
            f"{file}: has none of the model's classes {unknown}; it has {list(by_name)}"
        )
    notes = [f"not evaluated, since the set has no such classes: {', '.join(unknown)}"]
    return matched, notes if unknown else []
