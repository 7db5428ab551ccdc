"""The results of an evaluation as numbers, a table and JSON."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from rich import box
from rich.console import Console
from rich.table import Table

SIZES = {
    "small": "area up to 32 x 32 pixels",
    "medium": "area of 32 x 32 to 96 x 96 pixels",
    "large": "area from 96 x 96 pixels",
}


@dataclass(frozen=True, slots=True)
class ClassResult:
    """The results of a class.

    Attributes:
        category_id: its id in the COCO file.
        name: its name.
        objects: number in the ground truth by size ("all", "small", "medium", "large"), without
            crowds.
        metrics: "box/AP", "mask/APs", ... as in :class:`Report`, without recalls.
    """

    category_id: int
    name: str
    objects: Mapping[str, int]
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Report:
    """Average precision and recall of boxes and masks, by pycocotools' rules.

    A name is ``box/`` or ``mask/``, then ``AP`` (mean over IoU 0.50:0.05:0.95), ``AP50``, ``AP75``,
    ``APs``, ``APm``, ``APl`` (small, medium, large objects), ``AR@1``, ``AR@10``, ``AR@100``
    (recall with that number of detections per image), ``ARs``, ``ARm``, ``ARl``. Precisions use
    the 100 best detections of each class and image, pycocotools' default; if a model has a higher
    limit, say 500, there are also ``AP@500`` etc. All are 0..1, or -1 if the ground truth has no
    such objects. There is no ``mask/`` if no object has a segmentation.

    Attributes:
        metrics: name -> value, over all classes.
        classes: one entry for each class of the set, by category id.
        objects: number in the ground truth by size, without crowds.
        images: number evaluated.
        images_in_set: number in the annotation file.
        detections: number evaluated.
        notes: restrictions of the evaluation.
    """

    metrics: Mapping[str, float]
    classes: tuple[ClassResult, ...]
    objects: Mapping[str, int]
    images: int
    images_in_set: int
    detections: int
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> float:
        """The value of a metric: ``report["mask/AP"]``."""
        return self.metrics[name]

    @property
    def explanations(self) -> dict[str, str]:
        """Why a value is -1: name of the metric (or "class name") -> reason."""
        reasons = {
            name: _reason(name, self.objects) for name, value in self.metrics.items() if value == -1
        }
        for result in self.classes:
            if lacking := [size for size in SIZES if result.objects[size] == 0]:
                sizes = "" if result.objects["all"] == 0 else " or ".join(lacking) + " "
                reasons[f"class {result.name}"] = f"no {sizes}objects of this class in this set"
        return reasons

    def as_dict(self) -> dict[str, object]:
        """The report in plain types."""
        return {**asdict(self), "explanations": self.explanations}

    def table(self, per_class: bool = True) -> str:
        """Markdown tables over all classes and ``per_class``, then explanations and notes."""
        recalls = [name[4:] for name in self.metrics if name.startswith("box/AR@")]
        limits = ["", *(name[6:] for name in self.metrics if name.startswith("box/AP@"))]
        kinds = [kind for kind in ("box", "mask") if f"{kind}/AP" in self.metrics]
        of_class = [name for name in _PER_CLASS if name in self.metrics]
        summary = Table("", *_PRECISIONS, *recalls, box=box.MARKDOWN)
        for at in limits:
            for kind in kinds:
                names = [f"{kind}/{name}{at}" for name in _PRECISIONS]
                names += [f"{kind}/{name}" for name in recalls if not at]
                summary.add_row(f"{kind} {at}".strip(), *_cells(self.metrics, names))

        classes = Table("class", "objects", *of_class, box=box.MARKDOWN)
        for result in self.classes:
            cells = _cells(result.metrics, of_class)
            classes.add_row(result.name, str(result.objects["all"]), *cells)

        for table in (summary, classes):
            for column in table.columns[1:]:
                column.justify = "right"
        sizes = ", ".join(f"{self.objects[size]} {size}" for size in SIZES)
        of_set = "" if self.images == self.images_in_set else f" of {self.images_in_set}"
        head = (
            f"{self.images}{of_set} images, {self.objects['all']} objects ({sizes}), "
            f"{self.detections} detections"
        )
        shown = _render(classes) if per_class else ""
        parts = head, _render(summary), shown, _footnotes(self, per_class)
        return "\n\n".join(filter(None, parts))


_PRECISIONS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_PER_CLASS = ("box/AP", "mask/AP", "mask/AP50", "mask/APs", "mask/APm", "mask/APl")
_SIZE_OF = {"s": "small", "m": "medium", "l": "large"}


def _reason(metric: str, objects: Mapping[str, int]) -> str:
    size = _SIZE_OF.get(metric.split("/")[1].split("@")[0][2:], "all")
    if objects["all"] == 0:
        return "no objects in this set"
    return f"no {size} objects ({SIZES[size]}) in this set"


def _footnotes(report: Report, per_class: bool) -> str:
    """One line per reason with its metrics and classes, then the notes."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in report.explanations.items():
        if not name.startswith("class "):
            by_reason.setdefault(reason, []).append(name)
    if per_class:
        for result in report.classes:
            if result.objects["all"] == 0:
                reason = "no objects of this class in this set"
                by_reason.setdefault(reason, []).append(result.name)
            elif -1 in result.metrics.values():
                by_reason.setdefault("no objects of that size", ["a class"])
    lines = [f"-1 for {', '.join(names)}: {reason}" for reason, names in by_reason.items()]
    return "\n".join([*lines, *report.notes])


def _cells(metrics: Mapping[str, float], names: Iterable[str]) -> list[str]:
    values = (metrics[name] for name in names)
    return ["-1" if value == -1 else f"{value:.3f}" for value in values]


def _render(table: Table) -> str:
    text = io.StringIO()
    Console(file=text, width=200, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()).strip("\n")
