"""The whole comparison: train, measure, write; what is there already is kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from condseg.inference.device import pick_device
from studies.benchmarks.report import write_between, write_json
from studies.comparison import costs, figure, summary
from studies.comparison.trials import Budget, Trial, run, same_budget, trials
from studies.comparison.variants import choose
from studies.panels import save

STEM = "comparison"


def compare(
    output: Path,
    budget: Budget,
    variants: Sequence[str],
    *,
    train: Path,
    configs: Path,
    seeds: int = 3,
    jobs: int = 2,
    threads: int = 1,
    rounds: int = 30,
    device: str = "auto",
    page: Path | None = None,
) -> None:
    """Trains each variant with each seed, measures the costs, writes table, numbers and plot.

    Args:
        output: folder of everything.
        budget: of each training.
        variants: names.
        train: the script that trains.
        configs: folder of the configurations.
        seeds: trainings of each variant, seeds 0, 1, ...
        jobs: trainings at once.
        threads: of each training, and of the CPU where costs are measured.
        rounds: samples of each latency.
        device: on which costs are measured.
        page: a Markdown page that gets the table at the end, numbers and plot beside it.

    Raises:
        ValueError: a number is below 1, a variant unknown, the folder holds trainings of another
            budget, or trainings failed.
    """
    numbers = {"steps": budget.steps, "seeds": seeds, "jobs": jobs, "threads": threads}
    for name, value in {**numbers, "rounds": rounds}.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; 1 or more is allowed")
    chosen, where = choose(variants), pick_device(device)
    todo = trials(output, chosen, seeds)
    same_budget(output, budget)
    run(todo, budget, train, jobs, threads, lambda _: write(output, budget, todo))
    path = output / "costs.json"
    if _costs_lack(path, chosen):
        print(f"measuring the costs of {len(chosen)} variants", flush=True)
        write_json(costs.measure(chosen, budget, configs, where, rounds, threads), path)
    print(f"\n{write(output, budget, todo, page)}\nwritten: {output / STEM}.md, .json, .png")


def write(output: Path, budget: Budget, todo: Sequence[Trial], page: Path | None = None) -> str:
    """Writes what is there, finished or not; the page as text."""
    results: dict[str, dict[int, Mapping[str, Any]]] = {t.variant: {} for t in todo}
    for trial in todo:
        if (result := trial.result) is not None:
            results[trial.variant][trial.seed] = result
    path = output / "costs.json"
    measured = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    plain = asdict(budget)
    text = summary.page(results, measured, plain)
    (output / f"{STEM}.md").write_text(f"{text}\n![mask AP and costs]({STEM}.png)\n", "utf-8")
    write_json(summary.as_dict(results, measured, plain), output / f"{STEM}.json")
    save(figure.draw(results, measured, plain), output / f"{STEM}.png")
    if page is not None:
        write_between(page, STEM, text)
        for suffix in ("json", "png"):
            shutil.copy(output / f"{STEM}.{suffix}", page.parent)
    return text


def _costs_lack(path: Path, variants: Sequence[str]) -> bool:
    """Times of different measurements do not compare: all are measured again if one lacks."""
    if not path.is_file():
        return True
    return not set(variants) <= set(json.loads(path.read_text(encoding="utf-8"))["variants"])
