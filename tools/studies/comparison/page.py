"""The results as a page: differences to the static network, tuned rates, costs."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from studies.comparison.paired import difference, holm, verdict
from studies.comparison.variants import BASE, VARIANTS
from studies.report import machine_text, markdown_table, spread_text

Content = Mapping[str, Any]
"""Plain data, as in comparison.json, see ``compare.write``."""


def scores(entry: Content, metric: str = "mask/AP") -> dict[int, float]:
    """Seed -> a metric of a variant's final trainings."""
    return {int(seed): result["metrics"][metric] for seed, result in entry["seeds"].items()}


def differences(content: Content) -> list[dict[str, Any]]:
    """The difference in mask AP to the static network of each budget and variant; plain data.

    ``corrected`` and ``verdict`` are None until all seeds are trained.
    """
    found = [
        {"budget": number, "variant": name, **asdict(pairs)}
        for number, budget in enumerate(content["budgets"])
        for name, entry in budget["variants"].items()
        if name != BASE and BASE in budget["variants"]
        if (pairs := difference(scores(entry), scores(budget["variants"][BASE]))) is not None
    ]
    whole = [entry for entry in found if entry["pairs"] == content["seeds"]]
    corrected = iter(holm([entry["p"] for entry in whole], claims(content)))
    for entry in found:
        entry["corrected"] = next(corrected) if entry["pairs"] == content["seeds"] else None
        known = entry["corrected"] is not None
        entry["verdict"] = verdict(entry["mean"], entry["corrected"]) if known else None
    return found


def claims(content: Content) -> int:
    """Number of differences to the static network, those not known yet included."""
    return sum(len(budget["variants"]) - 1 for budget in content["budgets"])


def page(content: Content) -> str:
    """The page's text."""
    parts = [_training(content), _measurement(content["costs"])]
    for number, budget in enumerate(content["budgets"]):
        title = f"{budget['steps']:,} steps, {budget['images']:,} training images"
        parts += [f"**{title}**", _table(content, number)]
    parts += ["**Costs**", _costs(content), "**Tuning**", _tuning(content)]
    return "\n\n".join(parts) + "\n"


def _table(content: Content, number: int) -> str:
    head = ["variant", "dynamic", "learning rate", "seeds", "mask AP", "difference to static"]
    head += ["p", "verdict", "box AP", "kernel change", "CPU min a training"]
    found = {e["variant"]: e for e in content["differences"] if e["budget"] == number}
    rows = []
    for name, entry in content["budgets"][number]["variants"].items():
        rate = "-" if entry["rate"] is None else f"{entry['rate']:g}"
        aps = [mean_and_deviation(scores(entry, m)) for m in ("mask/AP", "box/AP")]
        cells = ["-"] * 3
        if (claim := found.get(name)) is not None:
            cells[0] = f"{claim['mean']:+.3f} ({claim['low']:+.3f} to {claim['high']:+.3f})"
            cells[1:] = "-", "unfinished"
            if claim["verdict"] is not None:
                cells[1:] = f"{claim['corrected']:.3f}", claim["verdict"]
        seconds = [s["cpu_seconds"] for s in entry["seeds"].values() if s["cpu_seconds"]]
        minutes = f"{statistics.fmean(seconds) / 60:.1f}" if seconds else "-"
        changes = [s["kernel_change"] for s in entry["seeds"].values()]
        known = [100 * change for change in changes if change is not None]
        change = f"{statistics.fmean(known):.2g} %" if known else "-"
        label = [VARIANTS[name].label, VARIANTS[name].part, rate, str(len(entry["seeds"]))]
        rows.append([*label, aps[0], *cells, aps[1], change, minutes])
    return markdown_table(head, rows)


def mean_and_deviation(values: Mapping[int, float]) -> str:
    """As text; the deviation is the sample's, and a single value has none."""
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values.values()):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values.values()):.3f}{spread}"


def _costs(content: Content) -> str:
    entries = (content["costs"] or {"variants": {}})["variants"]
    head = ["variant", "parameters", "GFLOPs", "latency", "of static", "peak memory"]
    rows = []
    for name in content["budgets"][0]["variants"]:
        cells = ["-"] * 5
        if (cost := entries.get(name)) is not None:
            latency = {key: 1e3 * value for key, value in cost["latency_seconds"].items()}
            cells = [
                f"{cost['parameters'] / 1e6:.2f} M",
                f"{2 * cost['multiply_adds'] / 1e9:.2f}",
                spread_text(latency, "{:.1f}", " ms"),
                f"{latency['median'] / (1e3 * base):.2f}x"
                if (base := _base_latency(entries))
                else "-",
                f"{cost['peak_bytes'] / 2**20:.1f} MiB",
            ]
        rows.append([VARIANTS[name].label, *cells])
    return markdown_table(head, rows)


def _base_latency(entries: Content) -> float | None:
    return entries[BASE]["latency_seconds"]["median"] if BASE in entries else None


def _tuning(content: Content) -> str:
    """A row per variant, a column per budget, in it the score of each rate; the best is bold."""
    budgets = content["budgets"]
    head = ["variant", *(f"{b['steps']:,} steps, {b['images']:,} images" for b in budgets)]
    rows = []
    for name in budgets[0]["variants"]:
        entries = [budget["variants"][name] for budget in budgets]
        rows.append([VARIANTS[name].label, *(", ".join(_rates(entry)) for entry in entries)])
    return markdown_table(head, rows)


def _rates(entry: Content) -> Iterator[str]:
    for rate, score in entry["tuning"].items():
        text = f"{rate}: {'-' if score is None else format(score, '.3f')}"
        if entry["rate"] is not None and rate == f"{entry['rate']:g}":
            text = f"**{text}**{' (edge)' if entry['at_the_edge'] else ''}"
        yield text


def _training(content: Content) -> str:
    setting, seeds = content["setting"], content["seeds"]
    also = f", {' '.join(setting['arguments'])}" if setting["arguments"] else ""
    results = [
        result
        for budget in content["budgets"]
        for entry in budget["variants"].values()
        for result in entry["seeds"].values()
    ]
    diverged = sum(result["diverged"] for result in results)
    return "\n".join(
        (
            f"Trained: {' + '.join(setting['configs'])}{also}, on {setting['data']}. Dynamic "
            "backbones: the convolutions of strides 8 to 32, without stem and shortcuts. "
            + " ".join(f"{text}." for text in hardware(results)),
            "Tuning: each variant and budget was trained with learning rates "
            f"{', '.join(f'{rate:g}' for rate in content['rates'])} ({content['tuning_seeds']} "
            f"seed each) and judged on {setting['images']['tuning']} tuning images; a grid whose "
            "best rate was at an edge was extended there by one rate, and (edge) says that it "
            "still was. The best rate was then trained "
            f"with {seeds} other seeds, judged once, after the last step, on "
            f"{setting['images']['test']} test images, which no choice "
            "of this comparison has seen.",
            "Differences in mask AP: mean over pairs of trainings with the same seed (the same "
            "order of images and augmentation), and its 95 % confidence interval by Student's t "
            "distribution, for the spread over trainings; the test images are taken as given. The "
            "intervals are not corrected. p: of the paired t test, corrected for "
            f"{claims(content)} claims by Holm's method; the verdict is at 0.05. Mask AP and box "
            "AP: mean ± standard deviation over the seeds. Diverged trainings, which count as 0: "
            f"{diverged}. Kernel change: mean over the dynamic layers of how much the kernel "
            "varies between images (a mask filter's: between pixels), from 0 to 100 %.",
        )
    )


def hardware(results: Sequence[Content]) -> list[str]:
    """The machines of the trainings."""
    return list(dict.fromkeys(machine_text(result["machine"]) for result in results))


def _measurement(costs: Content | None) -> str:
    if not costs:
        return "Costs: not measured yet."
    height, width = costs["image"]
    return (
        f"Costs: a forward pass in float32 on one image of {height} x {width}, without the mask "
        "head and the post-process; two FLOPs a multiply-add; latency in turns, median and "
        f"quartiles of {costs['rounds']} rounds; peak memory is what forward, losses and backward "
        f"on {costs['batch']} images hold beyond the weights, in float32. "
        f"{machine_text(costs['machine'])}."
    )
