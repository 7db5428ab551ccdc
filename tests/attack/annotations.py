"""Changed COCO jsons, read by the dataset and by the evaluator."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attack.forks import check, may_refuse
from attack.rounds import Attack
from attack.values import ANY_DAMAGE, Change, Damage, as_text, changed, changes, damages
from hypothesis import strategies as st
from support.coco import CATEGORIES, CocoSet, compressed

from condseg.data.dataset import CocoDataset
from condseg.evaluation import CocoEvaluator
from condseg.structures import Category, Detections, ImageInfo

SIZES = ((24, 32), (32, 24))
READERS = ("masks", "boxes", "mixed", "evaluator", "evaluator", "visibility")


@dataclass(frozen=True)
class Case:
    """The changes of the content, then one of the file's bytes, and who reads it."""

    reader: str
    changes: list[Change]
    damage: Damage | None = None


def prepare(folder: Path) -> CocoSet:
    """Two images with polygons, RLE, compressed RLE and a crowd."""
    coco = CocoSet(folder, "train", SIZES, objects=1)
    mask = np.zeros(SIZES[1], np.uint8)
    mask[3:9, 4:12] = 1
    coco.add(101, compressed(mask), [4, 3, 8, 6])
    coco.add(101, {"size": list(SIZES[1]), "counts": [40, 10, 718]}, [1, 8, 2, 10], n=1)
    coco.add(100, {"size": list(SIZES[0]), "counts": [0, 100, 668]}, [0, 0, 5, 24], iscrowd=1)
    for entry in coco.content["annotations"]:
        entry["visibility"] = 0.5
    return coco


def cases(coco: CocoSet) -> st.SearchStrategy[Case]:
    """Also those of megabytes."""
    readers = st.sampled_from(READERS)
    objects = st.integers(0, 1).map(lambda n: ("annotations", n))

    def many(where: tuple[Any, ...], count: int) -> list[Change]:
        """One image with many objects."""
        entry = coco.content["annotations"][where[1]]
        entries = [entry | {"id": 2000 + n} for n in range(count)]
        return [Change(("annotations",), entries)]

    def long(where: tuple[Any, ...], points: int) -> list[Change]:
        """A polygon with many points."""
        return [Change((*where, "segmentation"), [[5, 5, 9, 5, 9, 9] * points])]

    large = st.one_of(
        st.builds(many, objects, st.sampled_from([1000, 65_536, 70_000])),
        st.builds(long, objects, st.sampled_from([1000, 100_000])),
    )
    return st.one_of(*[small_cases(coco)] * 10, st.builds(Case, readers, large))


def small_cases(coco: CocoSet) -> st.SearchStrategy[Case]:
    content = coco.content
    readers = st.sampled_from(READERS)
    objects = st.integers(0, 1).map(lambda n: ("annotations", n))

    def huge(size: Any, number: int, area: bool) -> list[Change]:
        """An image that is huge by its json, and a polygon that fits it."""
        image = ("images", number)
        entry = ("annotations", number)
        sizes = [Change((*image, side), size) for side in ("height", "width")]
        corners = [[0, 0, size, 0, size, size, 0, size]]
        more = [] if area else [Change((*entry, "area"), "@delete@")]
        return [*sizes, Change((*entry, "segmentation"), corners), *more]

    def run(where: tuple[Any, ...], counts: Any, box: bool) -> list[Change]:
        """An RLE of other runs, from which box and area are computed."""
        size = list(SIZES[where[1]])
        more = [] if box else [Change((*where, key), "@delete@") for key in ("area", "bbox")]
        return [Change((*where, "segmentation"), {"size": size, "counts": counts}), *more]

    sizes = st.sampled_from([1, 2**12, 65535, 10**5, 2**24, 10**9, 1e9, 2**31, 2**53, 2**63])
    runs = st.one_of(
        st.lists(st.integers(-(2**40), 2**40), max_size=5),
        st.lists(st.sampled_from([0, 1, 768, 2**32, 2**31, -1]), max_size=5),
        st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=12),
    )
    some_changes = st.one_of(
        changes(content),
        changes(content, most=1),
        changes(content["annotations"], most=2).map(
            lambda many_: [Change(("annotations", *one.path), one.value) for one in many_]
        ),
        st.builds(huge, sizes, st.integers(0, 1), st.booleans()),
        st.builds(run, objects, runs, st.booleans()),
    )
    return st.one_of(
        *[st.builds(Case, readers, some_changes)] * 4,
        st.builds(Case, readers, st.just([]), damages(*ANY_DAMAGE)),
    )


def run(coco: CocoSet, case: Case, folder: Path) -> None:
    file = folder / "instances_train.json"
    content = as_text(json.dumps(changed(coco.content, case.changes))).encode()
    file.write_bytes(case.damage.apply(content) if case.damage else content)
    if case.reader in ("evaluator", "visibility"):
        _evaluate(file, (0.2, 0.9) if case.reader == "visibility" else None)
    else:
        _read(file, coco.images, case.reader)


def _read(file: Path, images: Path, supervision: Any) -> None:
    names = (file.name, *(path.name for path in images.iterdir()))
    with may_refuse(*names):
        dataset = CocoDataset(file, images, supervision=supervision)
        # An image whose size in the json is wrong is refused when it is read.
        samples = [dataset[k] for k in range(len(dataset))]
    for sample in samples:
        height, width = sample.image.shape[1:]
        targets = sample.targets
        inside = torch.tensor([width, height, width, height])
        count = len(targets.labels)
        check((height, width) in SIZES, f"image of {height}x{width}")
        check(targets.masks.shape == (count, height, width), "masks of another shape")
        check(((targets.boxes >= 0) & (targets.boxes <= inside)).all(), "boxes outside")
        check((targets.boxes[:, 2:] > targets.boxes[:, :2]).all(), "empty boxes")
        check(((targets.labels >= 0) & (targets.labels < len(dataset.categories))).all(), "labels")
        check(count <= 70_001, f"{count} objects")
    check(dataset.summary(), "no summary")


def _evaluate(file: Path, visibility: tuple[float, float] | None) -> None:
    categories = [Category(entry["id"], entry["name"]) for entry in CATEGORIES]
    with may_refuse(file.name):
        evaluator = CocoEvaluator(file, categories, 100, visibility)
    for number, (height, width) in enumerate(SIZES):
        masks = torch.zeros(2, height, width, dtype=torch.bool)
        masks[0, 3:9, 2:8] = masks[1, 3:9, 4:12] = True
        boxes = torch.tensor([[2.0, 3, 8, 9], [4, 3, 12, 9]])
        scores, labels = torch.tensor([0.9, 0.4]), torch.tensor([0, 1])
        info = ImageInfo(100 + number, f"{number}.png", (height, width), (height, width))
        with may_refuse(file.name):
            evaluator.update([info], [Detections(boxes, scores, labels, masks)])
    report = evaluator.compute()
    for name, value in report.metrics.items():
        check(math.isfinite(value) and -1 <= value <= 1, f"{name} is {value}")
    check(report.table(), "no table")
    json.dumps(report.as_dict(), allow_nan=False)


ATTACK = Attack(
    "annotations",
    "a COCO json with up to two absurd values, or damaged, for the dataset or the evaluator",
    prepare,
    cases,
    run,
    per_round=10,
    seconds=60,
)
