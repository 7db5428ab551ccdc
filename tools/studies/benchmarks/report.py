"""Where the numbers go: JSON, a plot, and a table between two marks of a Markdown page."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from studies.benchmarks.measure import Spread
from studies.panels import BLACK, BLUE, GREY, ORANGE, Image, blank, caption, column, row

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
            The first has all names.
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
            if name not in line:
                continue
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


def curve_table(unit: str, points: Sequence[Mapping[str, Any]]) -> str:
    """Medians and peaks by size."""
    names = list(points[0]["sides"])
    head = [unit, *(f"{n}, ms" for n in names), *(f"{n}, MiB" for n in names)]
    rows = []
    for point in points:
        sides = point["sides"].values()
        times = [f"{1e3 * side['seconds']['median']:,.2f}" for side in sides]
        peaks = [f"{side['memory']['peak'] / 2**20:,.1f}" for side in sides]
        rows.append([_size(point["size"]), *times, *peaks])
    return markdown_table(head, rows)


def _size(size: float | int) -> str:
    return f"{size:,.0f}" if size >= 100 else f"{size:.3g}"


def table_of(title: str, table: Mapping[str, Mapping[str, str]]) -> str:
    """A table of texts: line -> column -> cell."""
    head = list(next(iter(table.values())))
    return markdown_table([title, *head], [[name, *row.values()] for name, row in table.items()])


def stage_table(
    samples: Mapping[str, Sequence[Mapping[str, float]]], stages: Sequence[str]
) -> dict[str, dict[str, str]]:
    """Stage -> side -> median milliseconds and share of the whole, as :func:`table_of` takes it.

    Args:
        samples: side -> seconds of each stage, round by round.
        stages: in the order of the table; "all" follows them.
    """
    table: dict[str, dict[str, str]] = {stage: {} for stage in (*stages, "all")}
    for name, rounds in samples.items():
        taken = {s: statistics.median(row[s] for row in rounds) for s in stages}
        taken["all"] = statistics.median(sum(row.values()) for row in rounds)
        for stage, seconds in taken.items():
            table[stage][name] = f"{1e3 * seconds:,.1f} ({seconds / taken['all']:.1%})"
    return table


def curve_plot(unit: str, points: Sequence[Mapping[str, Any]]) -> Image:
    """Milliseconds and peak MiB of each side over the size, both axes logarithmic.

    Args:
        unit: what the sizes count.
        points: "size" and "sides" of each, see :class:`studies.benchmarks.session.Curve`.
    """
    names = list(points[0]["sides"])
    sizes = [float(point["size"]) for point in points]

    def of(read: Callable[[Mapping[str, Any]], float]) -> dict[str, list[float]]:
        return {n: [read(point["sides"][n]) for point in points] for n in names}

    times = of(lambda side: 1e3 * side["seconds"]["median"])
    peaks = of(lambda side: side["memory"]["peak"] / 2**20)
    keys = []
    for name, colour in zip(names, (BLUE, ORANGE), strict=False):
        square = blank(20, 14)
        square[6:15, 2:11] = colour
        keys.append(row(square, caption(name), gap=2))
    return column(
        row(caption(f"By {unit}", 15), *keys, gap=20),
        row(_log_log("ms", sizes, times), _log_log("peak MiB", sizes, peaks), gap=24),
    )


def _log_log(
    what: str, sizes: Sequence[float], lines: Mapping[str, Sequence[float]], side: int = 220
) -> Image:
    """A square with a line for each name; every size and every power of ten has its tick."""
    ends = np.log10([min(sizes), max(sizes)])
    values = np.log10(np.maximum([v for line in lines.values() for v in line], 1e-3))
    low, high = np.floor(values.min()), max(np.ceil(values.max()), np.floor(values.min()) + 1)
    left, canvas = 64, blank(side + 24, side + 100)

    def at(size: float, value: float) -> tuple[int, int]:
        x = (np.log10(size) - ends[0]) / max(ends[1] - ends[0], 1e-9)
        y = (np.log10(max(value, 1e-3)) - low) / (high - low)
        return left + round(float(x) * (side - 1)), round(float(1 - y) * (side - 1))

    for power in range(int(low), int(high) + 1):
        y = at(sizes[0], 10.0**power)[1]
        canvas[y, left : left + side] = (215, 215, 215)
        text = caption(f"{10.0**power:g}", 11)
        top = min(y, side - text.shape[0])
        canvas[top : top + text.shape[0], : text.shape[1]] = text
    for size in sizes:
        x = at(size, 1.0)[0]
        canvas[:side, x] = np.minimum(canvas[:side, x], 235)
        text = caption(_size(size), 11)
        part = canvas[side : side + text.shape[0], x : x + text.shape[1]]
        part[:] = np.minimum(part, text[: part.shape[0], : part.shape[1]])
    for colour, line in zip((BLUE, ORANGE), lines.values(), strict=False):
        corners = [at(size, value) for size, value in zip(sizes, line, strict=True)]
        for a, b in itertools.pairwise(corners):
            cv2.line(canvas, a, b, colour, 2, cv2.LINE_AA)
        for corner in corners:
            cv2.circle(canvas, corner, 3, colour, -1, cv2.LINE_AA)
    return column(caption(what, 12, GREY), canvas)
