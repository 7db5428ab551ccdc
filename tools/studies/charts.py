"""What the charts share: matplotlib's settings, colours that everybody can tell apart, saving."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

# Okabe and Ito, "Color Universal Design" (2008).
BLUE, ORANGE, GREY, BLACK = "#0072B2", "#D55E00", "#6E6E6E", "#000000"
DIVERGING = LinearSegmentedColormap.from_list("diverging", [BLUE, "white", ORANGE])

matplotlib.rcParams.update(
    {
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "legend.frameon": False,
        "legend.borderpad": 0,
        "image.interpolation": "nearest",
    }
)


def new_figure(width: float, height: float, title: str = "") -> Figure:
    """An empty figure; width and height in hundreds of pixels."""
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def split(figure: Any, rows: int, columns: int, **options: Any) -> list[Any]:
    """Parts of a figure, row by row; ``options`` are those of ``subfigures``."""
    return list(np.ravel(figure.subfigures(rows, columns, **options)))


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the version of matplotlib, so that the same figure is the same file.
    figure.savefig(path, metadata={"Software": None})
    return path


def show(axes: Any, values: Any, title: str = "", **options: Any) -> Any:
    """Draw an image or a map of numbers without ticks; ``options`` are those of ``imshow``."""
    image = axes.imshow(values, **options)
    axes.set(xticks=[], yticks=[], title=title)
    for spine in axes.spines.values():
        spine.set(visible=True, color="#BEBEBE")
    return image


def diverging(axes: Any, values: Any, title: str = "", limit: float | None = None) -> Any:
    """Draw a map of numbers, blue below zero and orange above, up to ±limit (their max)."""
    array = np.asarray(values, np.float64)
    limit = limit or max(float(np.abs(array).max()), 1e-12)
    return show(axes, array, title, cmap=DIVERGING, vmin=-limit, vmax=limit)


def ratios(axes: Any, series: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """Draw ratios on a logarithmic axis: a row for each name, a marker for each of two series.

    Args:
        series: label -> name -> "median", "q1" and "q3" (drawn as whiskers).
    """
    names = list(next(iter(series.values())))
    for label, colour, shift in zip(series, (BLUE, ORANGE), (-0.17, 0.17), strict=True):
        spreads = series[label]
        rows = [names.index(name) + shift for name in spreads]
        median, q1, q3 = ([s[k] for s in spreads.values()] for k in ("median", "q1", "q3"))
        whiskers = [np.subtract(median, q1), np.subtract(q3, median)]
        axes.errorbar(median, rows, xerr=whiskers, fmt="s", ms=5, color=colour, label=label)
    axes.set_xscale("log", base=2)
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.9), max(high, 2.2))
    axes.xaxis.set_major_formatter("{x:g}x")
    axes.axvline(1, color=BLACK, lw=1)
    axes.grid(axis="x", color="#D7D7D7")
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(left=False)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.spines[:].set_visible(False)
    axes.legend(ncols=2, loc="lower left", bbox_to_anchor=(0, 1))


def growth(axes: Any, sizes: Sequence[float], lines: Mapping[str, Sequence[float]]) -> None:
    """Draw a curve for each name over the sizes, both axes logarithmic."""
    for (label, values), colour in zip(lines.items(), (BLUE, ORANGE), strict=True):
        axes.plot(sizes, values, "o-", ms=4, color=colour, label=label)
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(sizes, [size_text(size) for size in sizes], minor=False)
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=9))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.grid(color="#E0E0E0")


def size_text(size: float) -> str:
    """A size as a label: with three digits, or whole from 100 on."""
    return f"{size:,.0f}" if size >= 100 else f"{size:.3g}"
