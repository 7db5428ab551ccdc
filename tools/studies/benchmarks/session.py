"""A subcommand of the benchmark: what it measures and what it writes."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from condseg.inference.device import pick_device
from studies.benchmarks.compare import Comparison
from studies.benchmarks.inputs import QUICK, Shapes
from studies.benchmarks.page import curve_table, sides_table, write_page
from studies.benchmarks.page import tables as all_tables
from studies.measure import machine
from studies.report import machine_text, write_json

Curves = Mapping[str, Mapping[float, Comparison]]
"""Unit of the sizes -> size -> the comparison at that size."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Measurements of one subcommand, each a function of the shapes and the device.

    Attributes:
        comparisons: measured if their name contains ``--only``.
        curves: measured if their unit contains ``--only``.
        stages: a table of texts, stage -> side -> cell.
    """

    comparisons: tuple[Callable[[Shapes, torch.device], list[Comparison]], ...]
    curves: Callable[[Shapes, torch.device], Curves] | None = None
    stages: Callable[[Shapes, torch.device], dict[str, dict[str, str]]] | None = None

    def run(self, args: argparse.Namespace) -> None:
        """Measure, print each result, write the JSON file, the chart and the machine's page.

        Raises:
            ValueError: there is no such device.
        """
        device, shapes = pick_device(args.device), QUICK if args.quick else Shapes()
        facts, comparisons, curves = machine(device), [], {}
        print(f"{machine_text(facts)}\n")
        stages = {"stage, median ms (share)": self.stages(shapes, device)} if self.stages else {}
        for comparison in (c for build in self.comparisons for c in build(shapes, device)):
            if args.only in comparison.name:
                comparisons.append(comparison.measure(device, args.seconds, args.rounds))
                print(f"{sides_table(comparisons[-1:])}\n", flush=True)
        for unit, sizes in (self.curves(shapes, device) if self.curves else {}).items():
            if args.only in unit:
                curves[unit] = [
                    {"size": size, **each.measure(device, args.seconds / 4, args.rounds)}
                    for size, each in sizes.items()
                ]
                print(f"{curve_table(unit, curves[unit])}\n", flush=True)
        more = {"shapes": asdict(shapes), "comparisons": comparisons, "curves": curves}
        write_results(args, facts, more, stages)


def write_results(
    args: argparse.Namespace,
    facts: Mapping[str, Any],
    more: Mapping[str, Any],
    tables: Mapping[str, Mapping[str, Mapping[str, str]]],
) -> None:
    """Writes the JSON file, the chart and the machine's page of a subcommand.

    Args:
        args: of the command line.
        facts: of the machine.
        more: of the JSON file.
        tables: texts by title, row and column.
    """
    content: dict[str, Any] = {
        "command": shlex.join(["python", *sys.argv]),
        "machine": facts,
        "quick": args.quick,
        "comparisons": [],
        "curves": {},
        "tables": tables,
        **more,
    }
    hardware = facts.get("gpu", f"{facts['cpu']} {facts['threads']} threads")
    stem = re.sub(r"[^a-z0-9]+", "-", hardware.lower()).strip("-")
    page = Path(args.output) / f"{stem}.md"
    file = write_json(content, page.with_name(f"{stem}-{args.command}.json"))
    files = [file, *write_page(args.command, content, page)]
    print(f"{all_tables(content)}\n\nwritten: {', '.join(map(str, files))}")
