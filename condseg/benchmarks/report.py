"""Where the numbers go: JSON, a plot, and a table between two marks of a Markdown page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from condseg.benchmarks.measure import Spread
from condseg.panels import BLACK, BLUE, GREY, ORANGE, Image, blank, caption, column, row

PLOT_WIDTH = 420


def write_json(content: Mapping[str, Any], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def markdown_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *lines))


def write_between(path: Path, mark: str, text: str) -> None:
    """Put the text between ``<!-- mark -->`` and ``<!-- /mark -->``; at the end if they are absent.

    Raises:
        ValueError: the page has the first mark and not the second.
    """
    page = path.read_text(encoding="utf-8") if path.is_file() else ""
    first, last = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    if first not in page:
        page = f"{page.rstrip()}\n\n{first}\n{last}\n".lstrip()
    before, _, rest = page.partition(first)
    if last not in rest:
        raise ValueError(f"{path} has the line {first!r}, but no {last!r} after it")
    after = rest.partition(last)[2]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{before}{first}\n{text}\n{last}{after}", encoding="utf-8")


def ratio_plot(
    title: str, notes: Sequence[str], series: Mapping[str, Mapping[str, Spread]]
) -> Image:
    """Ratios to a base on a logarithmic axis: a line for each name, a mark for each series.

    Args:
        title, notes: over it.
        series: at most two: what was measured -> name -> ratio; quartiles are drawn as a whisker.
    """
    names = list(next(iter(series.values())))
    values = [s.median for line in series.values() for s in line.values() if s.median > 0]
    low, high = np.log2([min([*values, 0.9]) / 1.2, max([*values, 2.0]) * 1.2])

    def place(value: float) -> int:
        part = (np.log2(max(value, 1e-9)) - low) / (high - low)
        return round(float(part) * (PLOT_WIDTH - 1))

    labels = [caption(name) for name in names]
    left = max(label.shape[1] for label in labels)
    ticks = [2.0**k for k in range(int(np.ceil(low)), int(np.floor(high)) + 1)]
    axis = blank(20, PLOT_WIDTH + 40)
    for tick in ticks:
        text = caption(f"{tick:g}x", 11)
        x = place(tick)
        axis[: text.shape[0], x : x + text.shape[1]] = text[: axis.shape[0], : axis.shape[1] - x]
    lines = [row(blank(1, left), axis)]
    colours = (BLUE, ORANGE)
    for name, label in zip(names, labels, strict=True):
        strip = blank(24, PLOT_WIDTH + 40)
        for tick in ticks:
            strip[:, place(tick)] = BLACK if tick == 1 else (215, 215, 215)
        for k, (line, colour) in enumerate(zip(series.values(), colours, strict=False)):
            spread, y = line[name], 7 + 10 * k
            strip[y, max(0, place(spread.low)) : place(spread.high) + 1] = colour
            x = max(3, place(spread.median))
            strip[y - 3 : y + 4, x - 3 : x + 4] = colour
        lines.append(row(row(label, blank(1, left - label.shape[1] or 1), gap=0)[:, :left], strip))
    keys = []
    for what, colour in zip(series, colours, strict=False):
        square = blank(20, 14)
        square[6:15, 2:11] = colour
        keys.append(row(square, caption(what), gap=2))
    said = [caption(note, 12, GREY) for note in notes]
    return column(caption(title, 16), *said, row(*keys, gap=20), *lines, gap=0)
