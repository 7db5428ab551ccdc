"""A run of the benchmark: its knobs, what it measures, and where the numbers go."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from condseg.inference.device import pick_device
from studies.benchmarks.compare import Comparison, bars_table, sides_table
from studies.benchmarks.measure import Spread, machine
from studies.benchmarks.report import (
    curve_plot,
    curve_table,
    ratio_plot,
    table_of,
    write_between,
    write_json,
)
from studies.benchmarks.subjects import Shapes
from studies.panels import column, save


@dataclass(frozen=True, slots=True)
class Curve:
    """The same comparison at several sizes.

    Attributes:
        unit: what the sizes count.
        points: size -> the comparison.
    """

    unit: str
    points: Mapping[float, Comparison]


class Session:
    """Measures comparisons and curves, tells of each as it is done, and writes all of them.

    Args:
        args: with what :meth:`add_arguments` added.

    Raises:
        ValueError: a number is below 1, or there is no such device.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        for name in ("rounds", "seconds", "threads"):
            value = getattr(args, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; 1 or more is allowed")
        if args.threads is not None:
            torch.set_num_threads(args.threads)
        self.device = pick_device(args.device)
        self.shapes = Shapes.quick() if args.quick else Shapes()
        self.seconds, self.rounds, self.only = args.seconds, args.rounds, args.only
        self.folder = Path(args.output)
        self.machine = machine(self.device)
        self.comparisons: list[dict[str, Any]] = []
        self.curves: dict[str, list[dict[str, Any]]] = {}
        self.tables: dict[str, Any] = {}
        print(f"{self.where()}\n")

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--quick", action="store_true", help="small shapes: does all run?")
        parser.add_argument("--threads", type=int, help="of PyTorch on the CPU; default: its own")
        parser.add_argument("--rounds", type=int, default=30, help="samples of each side at most")
        parser.add_argument(
            "--seconds", type=float, default=20.0, help="for the samples of a comparison, about"
        )
        parser.add_argument("--only", default="", help="comparisons with this in their name")
        parser.add_argument("--device", default="cpu", help="auto, cpu, cuda, cuda:1, mps")
        parser.add_argument("--output", default="out/benchmark", help="folder of page, JSON, plot")

    @property
    def stem(self) -> str:
        """The hardware, as a file name."""
        facts = self.machine
        name = facts.get("gpu", f"{facts['cpu']} {facts['threads']} threads")
        return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")

    def where(self) -> str:
        """Hardware and versions in a sentence."""
        facts = self.machine
        busy = ", a busy machine" if facts["load_average_1min"] > facts["cores"] / 2 else ""
        gpu = f"{facts['gpu']}, CUDA {facts['cuda']}; " if "gpu" in facts else ""
        return (
            f"{gpu}{facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads; load "
            f"average at the start {facts['load_average_1min']:g}{busy}; torch {facts['torch']}, "
            f"torchvision {facts['torchvision']}, Python {facts['python']}, condseg "
            f"{facts['condseg']}."
        )

    def compare(self, comparisons: Sequence[Comparison]) -> None:
        """Measure each whose name has ``--only`` in it."""
        for comparison in comparisons:
            if self.only in comparison.name:
                found = comparison.measure(self.device, self.seconds, self.rounds)
                self.comparisons.append(found)
                print(f"{sides_table([found])}\n", flush=True)

    def follow(self, curves: Sequence[Curve]) -> None:
        """Measure each point of each curve; ``--only`` may name its unit."""
        for curve in curves:
            if self.only not in curve.unit:
                continue
            points = self.curves.setdefault(curve.unit, [])
            for size, comparison in curve.points.items():
                found = comparison.measure(self.device, self.seconds / 4, self.rounds)
                points.append({"size": size, **found})
            print(f"{curve_table(curve.unit, points)}\n", flush=True)

    def write(self, name: str) -> None:
        """JSON, plot, and this subcommand's part of the hardware's page."""
        stem = f"{self.stem}-{name}"
        content = {
            "machine": self.machine,
            "shapes": asdict(self.shapes),
            "comparisons": self.comparisons,
            "curves": self.curves,
            "tables": self.tables,
        }
        files = [write_json(content, self.folder / f"{stem}.json")]
        plots = [self.bars_plot()] if self.lines else []
        plots += [curve_plot(unit, points) for unit, points in self.curves.items()]
        if plots:
            files.append(save(column(*plots, gap=24), self.folder / f"{stem}.png"))
        page = self.folder / f"{self.stem}.md"
        write_between(page, f"benchmark {name}", self.text(name, files))
        print(f"{self.parts()}\n\nwritten: {', '.join(map(str, [*files, page]))}")

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The lines of all comparisons, as they were judged."""
        return [line for each in self.comparisons for line in each["lines"]]

    def text(self, name: str, files: Sequence[Path]) -> str:
        """The page's part: what was run and where, the tables, the plot."""
        command = shlex.join(["python", *sys.argv])
        small = " Small shapes (`--quick`): the ratios say little." if self.small else ""
        parts = [f"## {name}", f"`{command}`", f"{self.where()}{small}", self.parts()]
        parts += [f"![{name}]({path.name})" for path in files if path.suffix == ".png"]
        parts += [f"All numbers: [`{files[0].name}`]({files[0].name})"]
        return "\n\n".join(parts)

    @property
    def small(self) -> bool:
        return self.shapes != Shapes()

    def parts(self) -> str:
        """All tables."""
        parts = [table_of(title, table) for title, table in self.tables.items()]
        if self.lines:
            parts.append(bars_table(self.lines))
        if self.comparisons:
            parts.append(sides_table(self.comparisons))
        parts += [curve_table(unit, points) for unit, points in self.curves.items()]
        return "\n\n".join(parts)

    def bars_plot(self) -> Any:
        """The ratios, and the bars where there are some."""
        lines = self.lines
        measured = {
            line["what"]: Spread(*(line["time"][k] for k in ("median", "q1", "q3")))
            for line in lines
        }
        bars = {line["what"]: line["faster"] or line["slower"] for line in lines}
        asked = {what: Spread(bar, bar, bar) for what, bar in bars.items() if bar is not None}
        where = self.machine.get("gpu", f"{self.machine['cpu']}, {self.machine['threads']} threads")
        notes = (f"{where}; torch {self.machine['torch']}",)
        return ratio_plot("Time ratios", notes, {"measured": measured, "bar": asked})
