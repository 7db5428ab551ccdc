"""The comparison as a chart: differences to the static network, costs, learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from studies.charts import BLACK, BLUE, GREY, ORANGE, new_figure, split
from studies.comparison.page import Content, hardware, scores
from studies.comparison.variants import BASE, VARIANTS

COLOURS = {
    "none": BLACK,
    "gates": GREY,
    "backbone": BLUE,
    "mask filter": ORANGE,
    "both": "#CC79A7",
}
"""Dynamic part -> colour; Okabe and Ito's."""
PALE = "#B9B9B9"
COSTS: dict[str, Any] = {
    "parameters": lambda e: (e["parameters"] / 1e6, "{:.1f} M"),
    "GFLOPs": lambda e: (e["multiply_adds"] * 2e-9, "{:.2f}"),
    "latency": lambda e: (1e3 * e["latency_seconds"]["median"], "{:.0f} ms"),
    "peak memory": lambda e: (e["peak_bytes"] / 2**20, "{:.0f} MiB"),
}
COLUMNS = 4  # of learning curves


def draw(content: Content) -> Figure:
    """Rows: variants. Columns: the difference with each budget, then costs. Below: curves."""
    names = list(content["budgets"][0]["variants"])
    curves = -(-max(len(names) - 1, 1) // COLUMNS)
    above, below = 0.33 * len(names) + 1.4, 1.6 * curves + 0.4
    figure = new_figure(10.5, above + below + 0.6)
    notes = [" + ".join(content["setting"]["configs"]), *_machines(content)]
    title = "The same detector with each layer, its learning rate tuned alike"
    figure.suptitle("\n".join((title, *notes)), x=0.01, ha="left", fontsize=9)
    upper, lower = split(figure, 2, 1, height_ratios=(above, below))
    _draw_rows(upper, content, names)
    _draw_curves(lower, content, [name for name in names if name != BASE], curves)
    return figure


def _draw_rows(figure: Any, content: Content, names: Sequence[str]) -> None:
    entries = (content["costs"] or {"variants": {}})["variants"]
    shown = COSTS if all(name in entries for name in names) else {}
    budgets = content["budgets"]
    widths = [*[2.4] * len(budgets), *[1] * len(shown)]
    all_axes = figure.subplots(1, len(widths), sharey=True, width_ratios=widths, squeeze=False)[0]
    colours = [COLOURS[VARIANTS[name].part] for name in names]
    for number, (axes, budget) in enumerate(zip(all_axes, budgets, strict=False)):
        _draw_differences(axes, content, number, names)
        title = f"{budget['steps']:,} steps, {budget['images']:,} images"
        axes.set(title=f"mask AP minus that of static\n{title}" if number == 0 else f"\n{title}")
    for axes, (title, read) in zip(all_axes[len(budgets) :], shown.items(), strict=True):
        values, forms = zip(*(read(entries[name]) for name in names), strict=True)
        bars = axes.barh(range(len(names)), values, height=0.2, color=colours)
        for bar, form, value in zip(bars, forms, values, strict=True):
            y = bar.get_y() - 0.06
            axes.text(0, y, form.format(value), va="bottom", fontsize=8)
        axes.set_title(title, fontsize=8)
        axes.set_xticks([])
    first = all_axes[0]
    first.set_yticks(range(len(names)), [VARIANTS[name].label for name in names])
    first.set(ylim=(len(names) - 0.5, -0.5))
    for axes in all_axes:
        axes.tick_params(left=False)
        axes.spines[:].set_visible(False)
    parts = dict.fromkeys(VARIANTS[name].part for name in names)
    key: list[Any] = [
        *(Patch(color=COLOURS[part], label=f"dynamic: {part}") for part in parts),
        Line2D([], [], marker="o", ls="", mfc="white", color=GREY, label="a pair of trainings"),
        Line2D([], [], marker="|", ms=9, mew=2.5, color=GREY, label="mean and 95 % interval"),
    ]
    figure.legend(handles=key, ncols=4, loc="outside lower left")


def _draw_differences(axes: Any, content: Content, number: int, names: Sequence[str]) -> None:
    """Dots: pairs of trainings. Line: mean and confidence interval; filled if a claim holds."""
    found = {e["variant"]: e for e in content["differences"] if e["budget"] == number}
    entries = content["budgets"][number]["variants"]
    axes.axvline(0, color=BLACK, lw=1)
    axes.grid(axis="x", color="#D7D7D7")
    for row, name in enumerate(names):
        if name == BASE or BASE not in entries:
            continue
        own, base = scores(entries[name]), scores(entries[BASE])
        pairs = [own[seed] - base[seed] for seed in own.keys() & base.keys()]
        colour = COLOURS[VARIANTS[name].part]
        axes.plot(pairs, [row - 0.17] * len(pairs), "o", color=colour, mfc="white", ms=3.5)
        if (claim := found.get(name)) is None:
            continue
        axes.plot([claim["low"], claim["high"]], [row + 0.17] * 2, color=colour, lw=1.5)
        axes.plot(claim["mean"], row + 0.17, "|", color=colour, ms=9, mew=2.5)
        if claim["verdict"] in ("better", "worse"):
            axes.text(claim["high"], row + 0.17, f" {claim['verdict']}", va="center", fontsize=8)


def _draw_curves(figure: Any, content: Content, names: Sequence[str], rows: int) -> None:
    """The training loss of each variant and of static, a line for each budget."""
    all_axes = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False).ravel()
    low, high = np.inf, 0.0
    for axes, name in zip(all_axes, names, strict=False):
        for budget in content["budgets"]:
            for other, colour in ((BASE, PALE), (name, COLOURS[VARIANTS[name].part])):
                entry = budget["variants"].get(other, {"seeds": {}})
                steps, losses = _mean_curve(entry["seeds"])
                axes.plot(steps, losses, color=colour, lw=1.2)
                if len(losses):
                    low, high = min(low, losses.min()), max(high, float(np.quantile(losses, 0.9)))
        axes.set_title(VARIANTS[name].label, fontsize=8)
        axes.set_xscale("log")
    if high:
        all_axes[0].set_ylim(0.95 * low, 1.05 * high)
    for axes in all_axes[len(names) :]:
        axes.set_axis_off()
    for axes in all_axes[max(0, len(names) - COLUMNS) : len(names)]:  # the last of each column
        axes.tick_params(labelbottom=True)
    figure.supylabel("training loss", fontsize=8)
    figure.supxlabel("step (a line for each budget; grey: static; mean over seeds)", fontsize=8)


def _mean_curve(seeds: Mapping[str, Any]) -> tuple[Any, Any]:
    """Steps and mean losses over the seeds."""
    curves = [s["curve"] for s in seeds.values() if s["curve"]["steps"]]
    points = min((len(curve["steps"]) for curve in curves), default=0)
    if not points:
        return np.zeros(0), np.zeros(0)
    losses = np.mean([curve["losses"][:points] for curve in curves], 0)
    return np.asarray(curves[0]["steps"][:points]), losses


def _machines(content: Content) -> list[str]:
    entries = [e for budget in content["budgets"] for e in budget["variants"].values()]
    return hardware([result for entry in entries for result in entry["seeds"].values()])
