"""The whole comparison: train, measure, write; existing results are kept."""

from __future__ import annotations

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
from studies.comparison.variants import choose
from studies.report import write_between, write_json

STEM = "comparison"


def compare(
    output: Path,
    budget: Budget,
    variants: Sequence[str],
    *,
    train: Path,
    seeds: int,
    jobs: int,
    threads: int,
    device: str,
    page: Path | None,
) -> None:
    """Train each variant with each seed, measure the costs, write table, JSON and chart.

    Args:
        output: folder of everything.
        budget: of each training.
        variants: names.
        train: the script that trains.
        seeds: trainings of each variant, with seeds 0, 1, ...
        jobs: trainings at a time.
        threads: of each training, and of the CPU when costs are measured.
        device: on which costs are measured.
        page: a Markdown page for the table, with JSON and chart beside it.

    Raises:
        ValueError: a number is below 1, a variant is unknown, the folder holds trainings of another
            budget, or trainings failed.
    """
    numbers = {"steps": budget.steps, "seeds": seeds, "jobs": jobs, "threads": threads}
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; 1 or more is allowed")
    chosen, where = choose(variants), pick_device(device)
    todo = trials(output, chosen, seeds)
    check_budget(output, budget)
    run(todo, budget, train, jobs, threads, lambda _: write(output, budget, todo))
    path = output / "costs.json"
    # Times of different runs are not comparable: if one is missing, all are measured again.
    if not set(chosen) <= set(_read(path)["variants"]):
        print(f"measuring the costs of {len(chosen)} variants", flush=True)
        write_json(costs.measure(chosen, budget, where, threads), path)
    print(f"\n{write(output, budget, todo, page)}\nwritten: {output / STEM}.md, .json, .png")


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
