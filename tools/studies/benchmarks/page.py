"""The page of a machine: tables and a chart of what a benchmark's JSON file holds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from studies.charts import growth, new_figure, ratios, save, size_text, split
from studies.report import machine_text, markdown_table, spread_text, write_between

Content = Mapping[str, Any]


def write_page(name: str, content: Content, page: Path) -> list[Path]:
    """Write a subcommand's part of the page from its JSON, and its chart beside the page."""
    stem = f"{page.stem}-{name}"
    small = " Small shapes (`--quick`): the ratios say little." if content["quick"] else ""
    parts = [f"## {name}", f"`{content['command']}`", f"{machine_text(content['machine'])}.{small}"]
    parts.append(tables(content))
    files = [page]
    if lines_of(content) or content["curves"]:
        files.append(save(chart(content), page.parent / f"{stem}.png"))
        parts.append(f"![{name}]({stem}.png)")
    parts.append(f"All numbers: [`{stem}.json`]({stem}.json)")
    write_between(page, f"benchmark {name}", "\n\n".join(parts))
    return files


def lines_of(content: Content) -> list[Any]:
    """The lines of all comparisons."""
    return [line for comparison in content["comparisons"] for line in comparison["lines"]]


def tables(content: Content) -> str:
    """All tables in Markdown."""
    parts = []
    for title, table in content["tables"].items():
        head = [title, *next(iter(table.values()))]
        parts.append(markdown_table(head, [[name, *row.values()] for name, row in table.items()]))
    if lines := lines_of(content):
        parts.append(bars_table(lines))
    if content["comparisons"]:
        parts.append(sides_table(content["comparisons"]))
    parts += [curve_table(unit, points) for unit, points in content["curves"].items()]
    return "\n\n".join(parts)


def bars_table(lines: Sequence[Content]) -> str:
    """The ratios, the bars, and whether they are reached; see :class:`.compare.Line`."""

    def cell(value: float | None, form: str = "{:g}x", absent: str = "none") -> str:
        return absent if value is None else form.format(value)

    rows = [
        [
            line["what"],
            spread_text(line["time"]),
            cell(line["slower"], "at most {:g}x", cell(line["faster"])),
            cell(line["memory"], "{:.2f}x", "not measured"),
            cell(line["memory_bar"]),
            "yes" if line["reached"] else "no",
        ]
        for line in lines
    ]
    head = ["what", "time ratio (median, quartiles)", "bar", "memory ratio", "bar", "reached"]
    return markdown_table(head, rows)


def sides_table(comparisons: Sequence[Content]) -> str:
    """Times and peaks of every side, and the difference of its results from its base's."""

    def ms(seconds: float) -> str:
        return f"{1e3 * seconds:,.2f}" if seconds < 0.1 else f"{1e3 * seconds:,.0f}"

    rows = []
    for comparison in comparisons:
        lines = [line for line in comparison["lines"] if line["difference"] is not None]
        differences = {line["own"]: f"{line['difference']:.1e}" for line in lines}
        for name, side in comparison["sides"].items():
            spread = {key: ms(value) for key, value in side["seconds"].items()}
            peaks = [(side["memory"] or {}).get(kind) for kind in ("counted", "resident")]
            rows.append(
                [
                    f"{comparison['name']}: {name}",
                    spread_text(spread, "{}", ""),
                    str(comparison["rounds"]),
                    *("" if peak is None else f"{peak / 2**20:,.1f}" for peak in peaks),
                    differences.get(name, ""),
                ]
            )
    head = ["side", "ms (quartiles)", "samples", "MiB, counted", "MiB, resident", "difference"]
    return markdown_table(head, rows)


def curve_table(unit: str, points: Sequence[Content]) -> str:
    """Medians and peaks by size."""
    names = list(points[0]["sides"])
    head = [unit, *(f"{n}, ms" for n in names), *(f"{n}, MiB" for n in names)]
    rows = []
    for point in points:
        sides = point["sides"].values()
        times = [f"{1e3 * side['seconds']['median']:,.2f}" for side in sides]
        peaks = [f"{side['memory']['peak'] / 2**20:,.1f}" for side in sides]
        rows.append([size_text(point["size"]), *times, *peaks])
    return markdown_table(head, rows)


def stage_cells(
    sides: Mapping[str, Callable[[], Mapping[str, float]]],
    stages: Sequence[str],
    rounds: int = 5,
) -> dict[str, dict[str, str]]:
    """Stage -> side -> median milliseconds and fraction of the whole.

    Args:
        sides: return the seconds of each stage; measured in turns, the first round is not counted.
        stages: in the order of the table; "all" follows them.
        rounds: samples of each.
    """
    samples = [{name: run() for name, run in sides.items()} for _ in range(rounds + 1)][1:]
    table: dict[str, dict[str, str]] = {stage: {} for stage in (*stages, "all")}
    for name in sides:
        seconds = {s: statistics.median(row[name][s] for row in samples) for s in stages}
        seconds["all"] = statistics.median(sum(row[name].values()) for row in samples)
        for stage, median in seconds.items():
            table[stage][name] = f"{1e3 * median:,.1f} ({median / seconds['all']:.1%})"
    return table


def chart(content: Content) -> Figure:
    """The ratios with their bars, then a row with time and memory for each curve."""
    lines, curves = lines_of(content), content["curves"]
    heights = ([0.24 * len(lines) + 0.9] if lines else []) + [2.7] * len(curves)
    machine = content["machine"]
    where = machine.get("gpu", f"{machine['cpu']}, {machine['threads']} threads")
    figure = new_figure(9, sum(heights) + 0.5, f"{where}; torch {machine['torch']}")
    parts = split(figure, len(heights), 1, height_ratios=heights)
    if lines:
        measured = {line["what"]: line["time"] for line in lines}
        bars = {
            line["what"]: dict.fromkeys(("median", "q1", "q3"), line["faster"] or line["slower"])
            for line in lines
        }
        ratios(parts.pop(0).subplots(), {"time ratio": measured, "bar": bars})
    for part, (unit, points) in zip(parts, curves.items(), strict=True):
        left, right = part.subplots(1, 2)
        sizes = [point["size"] for point in points]
        sides = {name: [point["sides"][name] for point in points] for name in points[0]["sides"]}
        times = {n: [1e3 * s["seconds"]["median"] for s in side] for n, side in sides.items()}
        peaks = {n: [s["memory"]["peak"] / 2**20 for s in side] for n, side in sides.items()}
        for axes, label, series in ((left, "ms", times), (right, "peak MiB", peaks)):
            growth(axes, sizes, series)
            axes.set(ylabel=label, xlabel=unit)
        left.legend()
    return figure
