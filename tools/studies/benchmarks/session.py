"""A run of the benchmark: its options, what it measures, and what it writes."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from condseg.inference.device import pick_device
from studies.benchmarks.compare import Comparison
from studies.benchmarks.page import curve_table, sides_table, tables, write_page
from studies.benchmarks.shapes import Shapes
from studies.measure import machine
from studies.report import machine_text, write_json


@dataclass(frozen=True, slots=True)
class Curve:
    """One comparison at several sizes.

    Attributes:
        unit: of the sizes.
        points: size -> the comparison.
    """

    unit: str
    points: Mapping[float, Comparison]


class Session:
    """Measures comparisons and curves, prints each when it is done, and writes all of them.

    Args:
        args: with what :meth:`add_arguments` added.

    Raises:
        ValueError: a number is out of range, or there is no such device.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        for name in ("rounds", "seconds"):
            if getattr(args, name) < 1:
                raise ValueError(f"{name} is {getattr(args, name)}; 1 or more is allowed")
        self.args = args
        self.device = pick_device(args.device)
        self.shapes = Shapes.quick() if args.quick else Shapes()
        self.content: dict[str, Any] = {
            "command": shlex.join(["python", *sys.argv]),
            "machine": machine(self.device),
            "quick": args.quick,
            "shapes": asdict(self.shapes),
            "comparisons": [],
            "curves": {},
            "tables": {},
        }
        print(f"{machine_text(self.content['machine'])}\n")

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--quick", action="store_true", help="small shapes, to try it")
        parser.add_argument("--rounds", type=int, default=30, help="max samples of each side")
        parser.add_argument(
            "--seconds", type=float, default=20.0, help="for the samples of a comparison, about"
        )
        parser.add_argument("--only", default="", help="only comparisons with this in their name")
        parser.add_argument("--device", default="cpu", help="auto, cpu, cuda, cuda:1, mps")
        parser.add_argument("--output", default="out/benchmark", help="folder of page, JSON, chart")

    def compare(self, comparisons: Sequence[Comparison]) -> None:
        """Measure each comparison whose name contains ``--only``."""
        for comparison in comparisons:
            if self.args.only in comparison.name:
                measured = comparison.measure(self.device, self.args.seconds, self.args.rounds)
                self.content["comparisons"].append(measured)
                print(f"{sides_table([measured])}\n", flush=True)

    def follow(self, curves: Sequence[Curve]) -> None:
        """Measure each curve whose unit contains ``--only``."""
        for curve in curves:
            if self.args.only in curve.unit:
                seconds = self.args.seconds / 4
                points = [
                    {"size": size, **each.measure(self.device, seconds, self.args.rounds)}
                    for size, each in curve.points.items()
                ]
                self.content["curves"][curve.unit] = points
                print(f"{curve_table(curve.unit, points)}\n", flush=True)

    def write(self, name: str) -> None:
        """Write the JSON file, the chart, and this subcommand's part of the machine's page."""
        facts, folder = self.content["machine"], Path(self.args.output)
        hardware = facts.get("gpu", f"{facts['cpu']} {facts['threads']} threads")
        stem = re.sub(r"[^a-z0-9]+", "-", hardware.lower()).strip("-")
        file = write_json(self.content, folder / f"{stem}-{name}.json")
        files = [file, *write_page(name, self.content, folder / f"{stem}.md")]
        print(f"{tables(self.content)}\n\nwritten: {', '.join(map(str, files))}")
