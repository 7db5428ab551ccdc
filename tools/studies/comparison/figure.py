"""The comparison as a chart: a row for each variant, its seeds as dots, its costs as bars."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from studies.charts import BLACK, BLUE, GREY, ORANGE, new_figure
from studies.comparison.summary import Results, hardware, values_of
from studies.comparison.variants import BASE, VARIANTS

COLOURS = {"none": BLACK, "backbone": BLUE, "mask filter": ORANGE}
"""Dynamic part -> colour."""
BAND = "#E4E4E4"
COSTS: dict[str, Any] = {
    "parameters": lambda e: (e["parameters"] / 1e6, "{:.1f} M"),
    "GFLOPs": lambda e: (e["multiply_adds"] * 2e-9, "{:.2f}"),
    "latency": lambda e: (1e3 * e["latency_seconds"]["median"], "{:.0f} ms"),
    "peak memory": lambda e: (e["peak_bytes"] / 2**20, "{:.1f} MiB"),
}


def draw(results: Results, costs: Mapping[str, Any] | None, budget: Mapping[str, Any]) -> Figure:
    """Mask AP of each seed (dots), their mean (line) and range, and the costs as bars."""
    names = [name for name, seeds in results.items() if seeds]
    colours = [COLOURS[VARIANTS[name].part] for name in names]
    entries = (costs or {"variants": {}})["variants"]
    shown = COSTS if all(name in entries for name in names) else {}
    figure = new_figure(9.2, 0.3 * len(names) + 1.7)
    title = "The same detector with each dynamic layer, the same budget"
    notes = [f"{budget['steps']} steps of {' + '.join(budget['configs'])}", *hardware(results)]
    figure.suptitle("\n".join((title, *notes)), x=0.01, ha="left", fontsize=9)
    widths = [3.2, *[1] * len(shown)]
    first, *others = figure.subplots(
        1, len(widths), sharey=True, width_ratios=widths, squeeze=False
    )[0]
    if results.get(BASE):
        base = values_of(results, BASE)
        first.axvspan(min(base), max(base), color=BAND)
    for row, (name, colour) in enumerate(zip(names, colours, strict=True)):
        scores = values_of(results, name)
        first.plot(scores, [row] * len(scores), "o-", color=colour, mfc="white", lw=1)
        first.plot(np.mean(scores), row, "|", color=colour, ms=16, mew=3)
    first.set_yticks(range(len(names)), [VARIANTS[name].label for name in names])
    first.set(ylim=(len(names) - 0.5, -0.5), title="mask AP")
    first.grid(axis="x", color="#D7D7D7")
    for axes, (title, read) in zip(others, shown.items(), strict=True):
        values, forms = zip(*(read(entries[name]) for name in names), strict=True)
        bars = axes.barh(range(len(names)), values, height=0.2, color=colours)
        labels = [form.format(value) for value, form in zip(values, forms, strict=True)]
        for bar, label in zip(bars, labels, strict=True):
            axes.text(0, bar.get_y() - 0.06, label, va="bottom", fontsize=8)
        axes.set(title=title, xticks=[])
    for axes in (first, *others):
        axes.tick_params(left=False)
        axes.spines[:].set_visible(False)
    key: list[Any] = [
        *(Patch(color=colour, label=f"dynamic: {part}") for part, colour in COLOURS.items()),
        Line2D([], [], marker="o", ls="", mfc="white", color=GREY, label="a seed"),
        Line2D([], [], marker="|", ls="", ms=14, mew=3, color=GREY, label="mean"),
        Patch(color=BAND, label=f"range of {VARIANTS[BASE].label}"),
    ]
    figure.legend(handles=key, ncols=len(key), loc="outside lower left")
    return figure
