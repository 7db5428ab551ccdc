"""The whole comparison: train, measure, write; existing results are kept."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from condseg.inference.device import pick_device
from studies.charts import save
from studies.comparison import costs, figure, summary
from studies.comparison.trials import Budget, Trial, check_budget, run, trials
from studies.comparison.variants import VARIANTS
from studies.report import write_between, write_json

STEM = "comparison"


def compare(args: argparse.Namespace, train: Path) -> None:
    """Train each variant with each seed, measure the costs, write table, JSON and chart.

    Args:
        args: the command's, see tools/compare.py.
        train: the script that trains.

    Raises:
        ValueError: a number is below 1, the folder holds trainings of another budget, or trainings
            failed.
    """
    for name in ("steps", "seeds", "jobs", "threads"):
        if getattr(args, name) < 1:
            raise ValueError(f"{name} is {getattr(args, name)}; 1 or more is allowed")
    output, device = args.output, pick_device(args.device)
    budget = Budget(tuple(args.config), args.steps, tuple(args.arguments))
    chosen = [name for name in VARIANTS if name in args.variants]
    todo = trials(output, chosen, args.seeds)
    check_budget(output, budget)
    run(todo, budget, train, args.jobs, args.threads, lambda _: write(output, budget, todo))
    path = output / "costs.json"
    # Times of different runs are not comparable: if one is missing, all are measured again.
    if not set(chosen) <= set(_read(path)["variants"]):
        print(f"measuring the costs of {len(chosen)} variants", flush=True)
        write_json(costs.measure(chosen, budget, device, args.threads), path)
    print(f"\n{write(output, budget, todo, args.page)}\nwritten: {output / STEM}.md, .json, .png")


def write(output: Path, budget: Budget, todo: Sequence[Trial], page: Path | None = None) -> str:
    """Write the results so far; the text of the page."""
    results: dict[str, dict[int, Mapping[str, Any]]] = {t.variant: {} for t in todo}
    for trial in todo:
        if (result := trial.result) is not None:
            results[trial.variant][trial.seed] = result
    measured = _read(output / "costs.json")
    content = (results, measured if measured["variants"] else None, asdict(budget))
    text = summary.page(*content)
    (output / f"{STEM}.md").write_text(f"{text}\n![mask AP and costs]({STEM}.png)\n", "utf-8")
    write_json(summary.as_dict(*content), output / f"{STEM}.json")
    save(figure.draw(*content), output / f"{STEM}.png")
    if page is not None:
        write_between(page, STEM, text)
        for suffix in ("json", "png"):
            shutil.copy(output / f"{STEM}.{suffix}", page.parent)
    return text


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"variants": {}}
