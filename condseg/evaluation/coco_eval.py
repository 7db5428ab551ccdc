"""Detections -> COCO records -> average precision by pycocotools."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from contextlib import redirect_stdout
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from condseg.evaluation.report import ClassResult, Report
from condseg.structures import Category, Detections, ImageInfo

Record = dict[str, Any]

KINDS = {"box": "bbox", "mask": "segm"}
DEFAULT_LIMIT = 100  # detections a picture and class in pycocotools' own summary
AREAS = {"": "all", "s": "small", "m": "medium", "l": "large"}


def to_records(
    info: ImageInfo, found: Detections, categories: Sequence[Category | None]
) -> list[Record]:
    """The detections of one picture in COCO's results format, best first.

    Args:
        info: the picture; its ``image_id`` goes into the records.
        found: boxes and masks in the original picture's pixels, contiguous labels.
        categories: class k's COCO id at position k; what is of a class with None is left out.

    Returns:
        ``image_id``, ``category_id``, ``score``, ``bbox`` (x, y, width, height; hundredths of a
        pixel) and ``segmentation`` (compressed RLE as text) of each.
    """
    boxes = found.boxes.detach().to("cpu", torch.float64)
    xywh = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)
    masks = found.masks.cpu().numpy().view(np.uint8)
    records = []
    for box, score, label, mask in zip(
        xywh.tolist(), found.scores.tolist(), found.labels.tolist(), masks, strict=True
    ):
        category = categories[label]
        if category is None:
            continue
        segmentation = rle.encode(np.asfortranarray(mask))
        segmentation["counts"] = segmentation["counts"].decode("ascii")
        records.append(
            {
                "image_id": info.image_id,
                "category_id": category.id,
                "score": score,
                "bbox": [round(x, 2) for x in box],
                "segmentation": segmentation,
            }
        )
    return records


class CocoEvaluator:
    """Collects the detections of a set, on any number of ranks, and judges them.

    Every rank updates with its own share; :meth:`compute` brings the shares together in the order
    of the image ids, so the figures do not depend on how many ranks there are, to the last digit.

    Classes go by name: the set may have other ids than the one the model was trained on, classes
    the model does not know (found never: AP 0), and lack some that it knows (not judged; the
    report says so).

    Args:
        annotation_file: COCO ground truth; crowds are passed on to pycocotools, which ignores
            what falls on them.
        categories: the model's class k at position k; the ids may have gaps.
        max_detections: the most that the model gives a picture. Above 100, pycocotools' default
            limit, the figures come a second time at this limit.
        visibility: judge only objects whose ``visibility`` (an annotation's field, the share of
            it that nothing hides, 0..1) lies in this range, both ends included. The others are
            ignored as pycocotools ignores objects outside of a range of areas: what finds them
            counts neither for nor against.

    Raises:
        ValueError: the file is no COCO ground truth, or has none of the categories, or
            ``visibility`` is no range, or an object has none.
    """

    def __init__(
        self,
        annotation_file: str | Path,
        categories: Sequence[Category],
        max_detections: int = DEFAULT_LIMIT,
        visibility: tuple[float, float] | None = None,
    ) -> None:
        self.annotation_file = str(annotation_file)
        self.max_detections = max_detections
        self._truth, self._notes = _load_truth(self.annotation_file)
        if visibility is not None:
            self._notes.append(_ignore_others(self._truth, visibility, self.annotation_file))
        self._categories = _match(categories, self._truth.cats)
        unknown = [c.name for c, own in zip(categories, self._categories, strict=True) if not own]
        if len(unknown) == len(categories):
            raise ValueError(
                f"{self.annotation_file}: has none of the model's classes {unknown}; its own are "
                f"{[c['name'] for c in self._truth.cats.values()]}"
            )
        if unknown:
            self._notes.append(f"not judged, for the set has no such classes: {', '.join(unknown)}")
        self._by_image: dict[int, list[Record]] = {}

    def reset(self) -> None:
        """Forgets the detections, keeps the ground truth: before each new evaluation."""
        self._by_image = {}

    def update(self, infos: Sequence[ImageInfo], detections: Sequence[Detections]) -> None:
        """Takes in what was found in some pictures.

        Raises:
            ValueError: a picture is not in the set, comes twice, or its masks have another size
                than the annotation file says.
        """
        for info, found in zip(infos, detections, strict=True):
            where = f"{self.annotation_file}: image id {info.image_id} ({info.file_name})"
            image = self._truth.imgs.get(info.image_id)
            if image is None:
                raise ValueError(f"{where} is not in this file")
            if info.image_id in self._by_image:
                raise ValueError(f"{where} was evaluated twice")
            stated = (image.get("height", info.original_size[0]), image.get("width"))
            if stated[1] is not None and tuple(found.masks.shape[1:]) != stated:
                raise ValueError(
                    f"{where} is {stated[0]} x {stated[1]} (height x width) in the file, but the "
                    f"picture is {found.masks.shape[1]} x {found.masks.shape[2]}"
                )
            self._by_image[info.image_id] = to_records(info, found, self._categories)

    @property
    def records(self) -> list[Record]:
        """All detections taken in so far in COCO's results format, by image id, best first."""
        return list(chain.from_iterable(self._by_image[key] for key in sorted(self._by_image)))

    def results(self, kind: str) -> list[Record]:
        """The records with what ``kind`` ("box" or "mask") is judged by, as for a results file.

        They are apart because pycocotools measures a detection by its box if it has one; masks
        have to be small, medium or large by their own area.
        """
        other = "segmentation" if kind == "box" else "bbox"
        return [{k: v for k, v in r.items() if k != other} for r in self.records]

    def gather(self) -> None:
        """Gives every rank the detections of all; without a process group there is nothing to do.

        Raises:
            ValueError: an image id comes from more than one rank.
        """
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return
        shares: list[dict[int, list[Record]]] = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(shares, self._by_image)
        merged: dict[int, list[Record]] = {}
        for rank, share in enumerate(shares):
            if twice := merged.keys() & share.keys():
                raise ValueError(
                    f"{self.annotation_file}: image ids {sorted(twice)[:5]} were evaluated by "
                    f"rank {rank} and by an earlier one"
                )
            merged |= share
        self._by_image = merged

    def compute(self) -> Report:
        """Judges the detections of all ranks; every rank gets the same report.

        Where pictures of the set are missing (a trial run on a few batches), it judges those that
        came, and the report says so.
        """
        self.gather()
        images = sorted(self._by_image)
        notes = list(self._notes)
        if len(images) < len(self._truth.imgs):
            notes.append(f"only {len(images)} of the set's {len(self._truth.imgs)} pictures")
        judged = {kind: self._judge(kind, images) for kind in KINDS}
        objects, by_class = self._count(images)
        return Report(
            metrics={
                f"{kind}/{name}": value
                for kind, evaluation in judged.items()
                for name, value in (_precisions(evaluation) | _recalls(evaluation)).items()
            },
            classes=tuple(
                ClassResult(
                    key,
                    category["name"],
                    by_class[key],
                    {
                        f"{kind}/{name}": value
                        for kind, evaluation in judged.items()
                        for name, value in _precisions(evaluation, key).items()
                    },
                )
                for key, category in sorted(self._truth.cats.items())
            ),
            objects=objects,
            images=len(images),
            images_in_set=len(self._truth.imgs),
            detections=sum(map(len, self._by_image.values())),
            notes=tuple(notes),
        )

    def _judge(self, kind: str, images: list[int]) -> COCOeval:
        with redirect_stdout(io.StringIO()):
            results = self.results(kind)
            found = self._truth.loadRes(results) if results else _empty(self._truth)
            evaluation = COCOeval(self._truth, found, KINDS[kind])
            evaluation.params.imgIds = images
            if self.max_detections > DEFAULT_LIMIT:
                evaluation.params.maxDets = [1, 10, DEFAULT_LIMIT, self.max_detections]
            evaluation.evaluate()
            evaluation.accumulate()
        return evaluation

    def _count(self, images: list[int]) -> tuple[dict[str, int], dict[int, dict[str, int]]]:
        """Objects of each size, over all classes and by category id; crowds are not counted."""
        ranges = dict(zip(AREAS.values(), COCOeval(iouType="segm").params.areaRng, strict=True))
        by_class = {key: dict.fromkeys(ranges, 0) for key in self._truth.cats}
        for image in images:
            for annotation in self._truth.imgToAnns[image]:
                if annotation["iscrowd"]:
                    continue
                for size, (low, high) in ranges.items():
                    inside = low <= annotation["area"] <= high
                    by_class[annotation["category_id"]][size] += inside
        total = {size: sum(count[size] for count in by_class.values()) for size in ranges}
        return total, by_class


def _precisions(evaluation: COCOeval, category: int | None = None) -> dict[str, float]:
    """AP, AP50, AP75 and by size; of one category, or over all; then again at a higher limit."""
    p = evaluation.params
    classes = slice(None) if category is None else slice(k := p.catIds.index(category), k + 1)
    values: dict[str, float] = {}
    for m, limit in enumerate(p.maxDets):
        if limit < DEFAULT_LIMIT:
            continue
        at = "" if limit == DEFAULT_LIMIT else f"@{limit}"
        precision = evaluation.eval["precision"][:, :, classes, :, m]
        values[f"AP{at}"] = _mean(precision[..., 0])
        for percent in (50, 75):
            chosen = np.isclose(p.iouThrs, percent / 100)
            values[f"AP{percent}{at}"] = _mean(precision[chosen][..., 0])
        for a, size in list(enumerate(AREAS))[1:]:
            values[f"AP{size}{at}"] = _mean(precision[..., a])
    return values


def _recalls(evaluation: COCOeval) -> dict[str, float]:
    """AR at each number of detections a picture, then by size at pycocotools' default."""
    recall, limits = evaluation.eval["recall"], evaluation.params.maxDets
    values = {f"AR@{limit}": _mean(recall[:, :, 0, m]) for m, limit in enumerate(limits)}
    default = limits.index(DEFAULT_LIMIT)
    for a, size in list(enumerate(AREAS))[1:]:
        values[f"AR{size}"] = _mean(recall[:, :, a, default])
    return values


def _mean(values: np.ndarray) -> float:
    present = values[values > -1]
    return float(present.mean()) if present.size else -1.0


def _empty(truth: COCO) -> COCO:
    """Results without a detection, which ``loadRes`` cannot read."""
    found = COCO()
    found.dataset = {**truth.dataset, "annotations": []}
    found.createIndex()
    return found


def _load_truth(file: str) -> tuple[COCO, list[str]]:
    """The ground truth with what pycocotools needs and some files leave out."""
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not a JSON file ({error})") from error
    missing = {"images", "annotations", "categories"} - set(content)
    if missing:
        raise ValueError(f"{file}: no COCO ground truth, it lacks {sorted(missing)}")
    notes = []
    if any(a.get("id") == 0 for a in content["annotations"]):
        # pycocotools keeps "matched with annotation 0" and "matched with none" alike.
        notes.append("annotation id 0 counts here; pycocotools on the bare file never matches it")
    sizes = {image["id"]: (image.get("height"), image.get("width")) for image in content["images"]}
    for number, annotation in enumerate(content["annotations"], start=1):
        annotation["id"] = number
        annotation.setdefault("iscrowd", 0)
        if "area" not in annotation or "bbox" not in annotation:
            coded = _coded(annotation["segmentation"], *sizes[annotation["image_id"]])
            annotation.setdefault("area", float(rle.area(coded)))
            annotation.setdefault("bbox", rle.toBbox(coded).tolist())
    truth = COCO()
    truth.dataset = content
    with redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth, notes


def _ignore_others(truth: COCO, visibility: tuple[float, float], file: str) -> str:
    """Ignores the objects outside a range of visibility; says how many are left.

    pycocotools overwrites an annotation's own ``ignore``, and a crowd may be found many times; but
    an area below all ranges of areas is ignored in each of them.
    """
    low, high = visibility
    if not 0 <= low <= high <= 1:
        raise ValueError(f"visibility is {low:g}..{high:g}; allowed is 0 <= low <= high <= 1")
    objects = [a for a in truth.dataset["annotations"] if not a["iscrowd"]]
    without = [a for a in objects if not isinstance(a.get("visibility"), int | float)]
    if without:
        raise ValueError(
            f"{file}: {len(without)} of {len(objects)} objects have no visibility (a number 0..1), "
            f"the first in image {without[0]['image_id']}; with visibility {low:g}..{high:g} each "
            "needs it"
        )
    others = [a for a in objects if not low <= a["visibility"] <= high]
    for annotation in others:
        annotation["area"] = -1
    return (
        f"only the {len(objects) - len(others)} of {len(objects)} objects with a visibility of "
        f"{low:g} to {high:g} are judged, the others ignored"
    )


def _coded(segmentation: Any, height: int | None, width: int | None) -> dict[str, Any]:
    """Polygons or an uncompressed RLE as a compressed one."""
    if isinstance(segmentation, list):
        return dict(rle.merge(rle.frPyObjects(segmentation, height, width)))
    if isinstance(segmentation["counts"], list):
        return dict(rle.frPyObjects(segmentation, height, width))
    return dict(segmentation)


def _match(
    categories: Sequence[Category], cats: dict[int, dict[str, Any]]
) -> list[Category | None]:
    """Each class of the model as the set has it: the same id and name, else the same name."""
    by_name = {category["name"]: key for key, category in cats.items()}
    matched: list[Category | None] = []
    for category in categories:
        same = cats.get(category.id, {}).get("name") == category.name
        key = category.id if same else by_name.get(category.name)
        matched.append(None if key is None else Category(key, category.name))
    return matched
