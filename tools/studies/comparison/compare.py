"""The whole comparison: images, trainings, costs, results; existing ones are kept."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from condseg.inference.device import pick_device
from studies.charts import save
from studies.comparison import costs, data, figure, page
from studies.comparison.change import kernel_change
from studies.comparison.plan import Plan, budget
from studies.comparison.run import run
from studies.comparison.trials import Budget, Setting
from studies.report import write_between, write_json

STEM = "comparison"


def compare(args: argparse.Namespace, train: Path) -> None:
    """Tune and train each variant with each budget, measure the costs, write the results.

    Args:
        args: the command's, see tools/compare.py.
        train: the script that trains.

    Raises:
        ValueError: an argument is not allowed, the folder holds trainings of another setting, or
            trainings failed.
    """
    numbers = ("seeds", "tuning_seeds", "tuning_images", "test_images", "styles", "jobs", "threads")
    for name in numbers:
        if getattr(args, name) < 1:
            raise ValueError(f"{name} is {getattr(args, name)}; 1 or more is allowed")
    rates = tuple(sorted(set(args.rates)))
    if len(rates) < 2 or rates[0] <= 0:
        raise ValueError(f"rates: {args.rates}; two or more different positive ones are allowed")
    budgets, device = tuple(map(budget, args.budgets)), pick_device(args.device)
    variants = tuple(dict.fromkeys(args.variants))
    plan = Plan(args.output, budgets, variants, rates, args.seeds, args.tuning_seeds)
    sets = _sets(args, budgets)
    setting = Setting(
        tuple(map(str, args.config)),
        str(args.data or f"tabletop{f' in {args.styles} styles' if args.styles > 1 else ''}"),
        {"tuning": args.tuning_images, "test": sets.tests},
        str(device),
        tuple(args.arguments),
    )
    setting.check(args.output)
    trials = list(plan.trials())
    done = sum(trial.result is not None for trial in trials)
    print(f"{plan.least} trainings or more, {done} done before", flush=True)
    run(
        plan.trials,
        lambda trial: setting.command(trial, sets),
        train,
        device,
        args.jobs,
        args.threads,
        lambda trial: kernel_change(trial, sets, device),
        lambda _: write(plan, setting),
    )
    path = args.output / "costs.json"
    # Times of different runs are not comparable: if one is missing, all are measured again.
    if not set(variants) <= set(_read(path)["variants"]):
        print(f"measuring the costs of {len(variants)} variants", flush=True)
        commands = {t.variant: setting.command(t, sets) for t in trials}
        write_json(costs.measure(commands, device, args.threads), path)
    print(f"\n{write(plan, setting, args.page)}\nwritten: {args.output / STEM}.md, .json, .png")


def _sets(args: argparse.Namespace, budgets: Sequence[Budget]) -> data.Sets:
    folder, sizes = args.output / "annotations", sorted({b.images for b in budgets})
    if args.data is not None:
        return data.split(args.data, folder, args.tuning_images, sizes)
    root = data.generate(args.tuning_images + sizes[-1], args.test_images, args.styles, args.jobs)
    return data.split(root, folder, args.tuning_images, sizes, args.test_images, shuffle=False)


def write(plan: Plan, setting: Setting, target: Path | None = None) -> str:
    """Write the results so far; the text of the page."""
    measured = _read(plan.output / "costs.json")
    content = {
        "setting": asdict(setting),
        "rates": list(plan.rates),
        "seeds": plan.seeds,
        "tuning_seeds": plan.tuning_seeds,
        "budgets": plan.results(),
        "costs": measured if measured["variants"] else None,
    }
    content["differences"] = page.differences(content)
    text, stem = page.page(content), plan.output / STEM
    stem.with_suffix(".md").write_text(f"{text}\n![the results as a chart]({STEM}.png)\n", "utf-8")
    write_json(content, stem.with_suffix(".json"))
    save(figure.draw(content), stem.with_suffix(".png"))
    if target is not None:
        write_between(target, STEM, text)
        for suffix in (".json", ".png"):
            shutil.copy(stem.with_suffix(suffix), target.parent)
    return text


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"variants": {}}
