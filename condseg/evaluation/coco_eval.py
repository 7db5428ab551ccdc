"""Detections -> COCO records -> average precision by pycocotools."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch.distributed as dist
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from condseg.evaluation.ground_truth import (
    NO_MASKS,
    ignore_by_visibility,
    load_ground_truth,
    match_categories,
)
from condseg.evaluation.records import Record, start_records
from condseg.evaluation.report import ClassResult, Report
from condseg.structures import Category, Detections, ImageInfo

KINDS = {"box": "bbox", "mask": "segm"}
DEFAULT_LIMIT = 100  # max detections per image and class of pycocotools' summary
AREAS = {"": "all", "s": "small", "m": "medium", "l": "large"}


class CocoEvaluator:
    """Collects the detections of a set, on any number of ranks, and computes their AP.

    Each rank updates with its own images; :meth:`compute` merges them in the order of the image
    ids, so the results do not depend on the number of ranks. Classes are matched by name: the set
    may have other ids than the training set, classes that the model does not know (AP 0), and
    lack some that it knows (not evaluated; the report says so).

    Args:
        annotation_file: COCO ground truth; pycocotools ignores detections of crowds.
        categories: of the model's class k at position k; the ids may have gaps.
        max_detections: max number per image of the model. Above 100, pycocotools' default limit,
            the results are also computed at this limit.
        visibility: evaluate only objects whose ``visibility`` (a field of the annotation: the
            visible fraction of the object, 0..1) is in this range, both ends included. The
            others are ignored like objects outside a range of areas.
        images: folder of the images, whose files have the sizes that the ground truth lacks.

    Raises:
        ValueError: the file is no COCO ground truth or has none of the categories, or
            ``visibility`` is no range, or an object has none.
    """

    def __init__(
        self,
        annotation_file: str | Path,
        categories: Sequence[Category],
        max_detections: int = DEFAULT_LIMIT,
        visibility: tuple[float, float] | None = None,
        images: Path | None = None,
    ) -> None:
        self.annotation_file = Path(annotation_file)
        self.max_detections = max_detections
        self._truth, self._notes = load_ground_truth(self.annotation_file, images)
        self._kinds = ("box",) if NO_MASKS in self._notes else ("box", "mask")
        if visibility is not None:
            self._notes.append(ignore_by_visibility(self._truth, visibility, self.annotation_file))
        self._categories, notes = match_categories(categories, self._truth, self.annotation_file)
        self._notes += notes
        self._by_image: dict[int, list[Record]] = {}
        self._pending: list[tuple[list[int], Callable[[], list[list[Record]]]]] = []

    def reset(self) -> None:
        """Removes the detections, before a new evaluation."""
        self._by_image, self._pending = {}, []

    def update(self, infos: Sequence[ImageInfo], detections: Sequence[Detections]) -> None:
        """Adds the detections of some images.

        Masks are encoded on their device; :meth:`finish` waits for the result. It is called here
        for earlier images, and by what reads the records.

        Raises:
            ValueError: an image is not in the set, was added before, or its masks have another
                size than in the annotation file.
        """
        for info, of_image in zip(infos, detections, strict=True):
            where = f"{self.annotation_file}: image id {info.image_id} ({info.file_name})"
            image = self._truth.imgs.get(info.image_id)
            if image is None:
                raise ValueError(f"{where} is not in this file")
            if info.image_id in self._by_image:
                raise ValueError(f"{where} was evaluated twice")
            height, width = of_image.masks.shape[1:]
            stated = image["height"], image["width"]
            if (height, width) != stated:
                raise ValueError(
                    f"{where} is {stated[0]} x {stated[1]} (height x width) in the file, its "
                    f"masks are {height} x {width}"
                )
        started = start_records(infos, detections, self._categories)
        self.finish()
        self._by_image |= {info.image_id: [] for info in infos}
        self._pending.append(([info.image_id for info in infos], started))

    def finish(self) -> None:
        """Makes the records of the images that were added."""
        for images, records in self._pending:
            self._by_image |= zip(images, records(), strict=True)
        self._pending = []

    @property
    def records(self) -> list[Record]:
        """All detections in COCO's results format, by image id, best first."""
        self.finish()
        return list(chain.from_iterable(self._by_image[key] for key in sorted(self._by_image)))

    def results(self, kind: str) -> list[Record]:
        """The records of a results file for "box" or "mask".

        They are separate because pycocotools takes a detection's area from its box if it has
        one; masks must be small, medium or large by their own area.
        """
        other = "segmentation" if kind == "box" else "bbox"
        return [{k: v for k, v in r.items() if k != other} for r in self.records]

    def gather(self) -> None:
        """Merges the detections of all ranks; without a process group it does nothing.

        Raises:
            ValueError: two ranks evaluated the same image.
        """
        self.finish()
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return
        parts: list[dict[int, list[Record]]] = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(parts, self._by_image)
        merged: dict[int, list[Record]] = {}
        for rank, part in enumerate(parts):
            if twice := merged.keys() & part.keys():
                raise ValueError(
                    f"{self.annotation_file}: image ids {sorted(twice)[:5]} were evaluated by "
                    f"rank {rank} and by an earlier one"
                )
            merged |= part
        self._by_image = merged

    def compute(self) -> Report:
        """Evaluates the detections of all ranks; each rank returns the same report.

        If images of the set are missing (a run on a few batches), only those added are
        evaluated, and the report says so.
        """
        self.gather()
        images = sorted(self._by_image)
        notes = list(self._notes)
        if len(images) < len(self._truth.imgs):
            notes.append(f"only {len(images)} of the set's {len(self._truth.imgs)} images")
        evaluations = {kind: self._evaluate(kind, images) for kind in self._kinds}

        def values(metrics: Callable[[COCOeval], dict[str, float]]) -> dict[str, float]:
            results = {kind: metrics(evaluation) for kind, evaluation in evaluations.items()}
            return {f"{kind}/{name}": v for kind, r in results.items() for name, v in r.items()}

        objects, by_class = self._count_objects(images)
        return Report(
            metrics=values(lambda evaluation: _precisions(evaluation) | _recalls(evaluation)),
            classes=tuple(
                ClassResult(
                    key, category["name"], by_class[key], values(partial(_precisions, category=key))
                )
                for key, category in sorted(self._truth.cats.items())
            ),
            objects=objects,
            images=len(images),
            images_in_set=len(self._truth.imgs),
            detections=sum(map(len, self._by_image.values())),
            notes=tuple(notes),
        )

    def _evaluate(self, kind: str, images: list[int]) -> COCOeval:
        with redirect_stdout(io.StringIO()):
            results = self.results(kind)
            detections = self._truth.loadRes(results) if results else _no_results(self._truth)
            evaluation = COCOeval(self._truth, detections, KINDS[kind])
            evaluation.params.imgIds = images
            if self.max_detections > DEFAULT_LIMIT:
                evaluation.params.maxDets = [1, 10, DEFAULT_LIMIT, self.max_detections]
            evaluation.evaluate()
            evaluation.accumulate()
        return evaluation

    def _count_objects(self, images: list[int]) -> tuple[dict[str, int], dict[int, dict[str, int]]]:
        """Number of objects by size, in total and by category id, without crowds."""
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
    """AP, AP50, AP75 and by size, of a category or all, at the default and at a higher limit."""
    p = evaluation.params
    classes = slice(None) if category is None else [p.catIds.index(category)]
    values: dict[str, float] = {}
    for m, limit in enumerate(p.maxDets):
        if limit < DEFAULT_LIMIT:
            continue
        at = "" if limit == DEFAULT_LIMIT else f"@{limit}"
        # (IoU, recall, class, area)
        precision = evaluation.eval["precision"][:, :, :, :, m][:, :, classes]
        values[f"AP{at}"] = _mean(precision[..., 0])
        for percent in (50, 75):
            chosen = np.isclose(p.iouThrs, percent / 100)
            values[f"AP{percent}{at}"] = _mean(precision[chosen][..., 0])
        for a, size in list(enumerate(AREAS))[1:]:
            values[f"AP{size}{at}"] = _mean(precision[..., a])
    return values


def _recalls(evaluation: COCOeval) -> dict[str, float]:
    """AR at each max number of detections, and by size at pycocotools' default."""
    recall, limits = evaluation.eval["recall"], evaluation.params.maxDets
    values = {f"AR@{limit}": _mean(recall[:, :, 0, m]) for m, limit in enumerate(limits)}
    default = limits.index(DEFAULT_LIMIT)
    for a, size in list(enumerate(AREAS))[1:]:
        values[f"AR{size}"] = _mean(recall[:, :, a, default])
    return values


def _mean(values: np.ndarray) -> float:
    present = values[values > -1]
    return float(present.mean()) if present.size else -1.0


def _no_results(truth: COCO) -> COCO:
    """Results without a detection, which ``loadRes`` does not support."""
    results = COCO()
    results.dataset = {**truth.dataset, "annotations": []}
    results.createIndex()
    return results
