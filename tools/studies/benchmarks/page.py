"""The page of a machine: tables and a chart of what a benchmark's JSON file holds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from studies.charts import growth, new_figure, ratios, save, size_text, split
from studies.report import machine_text, markdown_table, write_between

Content = Mapping[str, Any]


def write_page(name: str, content: Content, page: Path) -> list[Path]:
    """Write a subcommand's part of the page, and its chart if there is something to draw.

    Args:
        name: the subcommand.
        content: what its JSON file holds.
        page: the machine's Markdown page; chart and JSON are beside it.

    Returns:
        The files.
    """
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
    parts = [cell_table(title, table) for title, table in content["tables"].items()]
    if lines := lines_of(content):
        parts.append(bars_table(lines))
    if content["comparisons"]:
        parts.append(sides_table(content["comparisons"]))
    parts += [curve_table(unit, points) for unit, points in content["curves"].items()]
    return "\n\n".join(parts)


def bars_table(lines: Sequence[Content]) -> str:
    """The ratios, the bars, and whether they are reached; see :class:`.compare.Line`."""
    rows = []
    for line in lines:
        time, memory = line["time"], line["memory"]
        bar = f"{line['faster']:g}x" if line["faster"] is not None else "none"
        if line["slower"] is not None:
            bar = f"at most {line['slower']:g}x"
        rows.append(
            [
                line["what"],
                f"{time['median']:.2f}x ({time['q1']:.2f} to {time['q3']:.2f})",
                bar,
                "not measured" if memory is None else f"{memory:.2f}x",
                "none" if line["memory_bar"] is None else f"{line['memory_bar']:g}x",
                {True: "yes", False: "no", None: "no bar"}[line["reached"]],
            ]
        )
    head = ["what", "time ratio (median, quartiles)", "bar", "memory ratio", "bar", "reached"]
    return markdown_table(head, rows)


def sides_table(comparisons: Sequence[Content]) -> str:
    """Times and peaks of every side, and the difference of its results from its base's."""

    def ms(seconds: float) -> str:
        return f"{1e3 * seconds:,.2f}" if seconds < 0.1 else f"{1e3 * seconds:,.0f}"

    rows = []
    for comparison in comparisons:
        differences = {
            line["own"]: f"{line['difference']:.1e}"
            for line in comparison["lines"]
            if line["difference"] is not None
        }
        for name, side in comparison["sides"].items():
            spread, memory = side["seconds"], side["memory"] or {}
            peaks = [memory.get(kind) for kind in ("counted", "resident")]
            rows.append(
                [
                    f"{comparison['name']}: {name}",
                    f"{ms(spread['median'])} ({ms(spread['q1'])} to {ms(spread['q3'])})",
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


def cell_table(title: str, table: Mapping[str, Mapping[str, str]]) -> str:
    """A table of texts: row -> column -> cell."""
    head = list(next(iter(table.values())))
    return markdown_table([title, *head], [[name, *row.values()] for name, row in table.items()])


def stage_cells(
    samples: Mapping[str, Sequence[Mapping[str, float]]], stages: Sequence[str]
) -> dict[str, dict[str, str]]:
    """Stage -> side -> median milliseconds and fraction of the whole, for :func:`cell_table`.

    Args:
        samples: side -> seconds of each stage, round by round.
        stages: in the order of the table; "all" follows them.
    """
    table: dict[str, dict[str, str]] = {stage: {} for stage in (*stages, "all")}
    for name, rounds in samples.items():
        seconds = {s: statistics.median(row[s] for row in rounds) for s in stages}
        seconds["all"] = statistics.median(sum(row.values()) for row in rounds)
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
        bars = {line["what"]: line["faster"] or line["slower"] for line in lines}
        as_spreads = {
            what: dict.fromkeys(("median", "q1", "q3"), bar)
            for what, bar in bars.items()
            if bar is not None
        }
        ratios(parts.pop(0).subplots(), {"time ratio": measured, "bar": as_spreads})
    for part, (unit, points) in zip(parts, curves.items(), strict=True):
        left, right = part.subplots(1, 2)
        sizes = [point["size"] for point in points]
        sides = {name: [point["sides"][name] for point in points] for name in points[0]["sides"]}
        times = {n: [1e3 * s["seconds"]["median"] for s in side] for n, side in sides.items()}
        peaks = {n: [s["memory"]["peak"] / 2**20 for s in side] for n, side in sides.items()}
        growth(left, sizes, times)
        growth(right, sizes, peaks)
        left.set(ylabel="ms", xlabel=unit)
        right.set(ylabel="peak MiB", xlabel=unit)
        left.legend()
    return figure
