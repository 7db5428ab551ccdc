"""The comparison as a picture: a line a variant, its seeds as dots, its costs as bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from studies.comparison.summary import Results, hardware, statistics_of
from studies.comparison.variants import BASE, VARIANTS
from studies.panels import BLACK, BLUE, GREY, ORANGE, Image, blank, caption, column, row

HEIGHT, WIDE, NARROW = 30, 360, 96
COLOURS = {"none": BLACK, "backbone": BLUE, "mask filter": ORANGE}
COSTS = (
    ("parameters", "parameters", 1e-6, "{:.1f} M"),
    ("GFLOPs", "multiply_adds", 2e-9, "{:.2f}"),
    ("latency", "latency", 1e3, "{:.0f} ms"),
    ("peak memory", "peak_bytes", 2**-20, "{:.1f} MiB"),
)


def draw(results: Results, costs: Mapping[str, Any] | None, budget: Mapping[str, Any]) -> Image:
    """Mask AP of each seed (dots), their mean (line) and range, and bars of what it costs."""
    names = [name for name, seeds in results.items() if seeds]
    values = [r["metrics"]["mask/AP"] for name in names for r in results[name].values()]
    low, high, ticks = _axis(values)
    labels = {name: caption(VARIANTS[name].label, 14) for name in names}
    left = max(label.shape[1] for label in labels.values())
    entries = _costs(costs, names)
    tops = {key: max(e[key] for e in entries.values()) for key in next(iter(entries.values()), {})}
    shown = [cost for cost in COSTS if cost[1] in tops]
    heads = [_fit(caption(head, 13), HEIGHT, NARROW) for head, *_ in shown]
    head = row(blank(HEIGHT, left), _fit(caption("mask AP", 13), HEIGHT, WIDE), *heads, gap=14)
    lines = [head]
    for name in names:
        colour = COLOURS[VARIANTS[name].part]
        cells = [_fit(labels[name], HEIGHT, left), _seeds(results, name, low, high, ticks, colour)]
        for _, key, unit, form in shown:
            value = entries[name][key]
            cells.append(_bar(value / tops[key], form.format(value * unit), colour))
        lines.append(row(*cells, gap=14))
    lines.append(row(blank(20, left), _tick_labels(low, high, ticks), gap=14))
    seeds = sorted({len(results[name]) for name in names})
    count = " to ".join(str(n) for n in dict.fromkeys((seeds[0], seeds[-1])))
    title = "The same detector with each dynamic layer, the same budget"
    notes = [f"{budget['steps']} steps of {' + '.join(budget['configs'])}; seeds: {count}"]
    return column(
        caption(title, 17),
        *(caption(note, 12, GREY) for note in [*notes, *hardware(results)]),
        row(_key(), blank(26, 1)),
        *lines,
        gap=0,
    )


def _costs(costs: Mapping[str, Any] | None, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Costs as bare numbers, where all variants have them."""
    measured = (costs or {"variants": {}})["variants"]
    if not all(name in measured for name in names):
        return {}
    latency = {name: measured[name]["latency_seconds"]["median"] for name in names}
    keys = [key for _, key, *_ in COSTS]
    return {n: {k: (measured[n] | {"latency": latency[n]})[k] for k in keys} for n in names}


def _axis(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """Ends of the axis and its ticks, at a round distance; a few at most."""
    span = max(max(values) - min(values), 0.01)
    step = next(s for s in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if span / s <= 8)
    first, last = np.floor(min(values) / step - 0.2), np.ceil(max(values) / step + 0.2)
    ticks = [round(float(k * step), 6) for k in np.arange(first, last + 1)]
    return ticks[0], ticks[-1], ticks


def _place(value: float, low: float, high: float) -> int:
    return round(8 + (value - low) / (high - low) * (WIDE - 17))


def _seeds(
    results: Results,
    name: str,
    low: float,
    high: float,
    ticks: Sequence[float],
    colour: tuple[int, int, int],
) -> Image:
    strip, middle = blank(HEIGHT, WIDE), HEIGHT // 2
    if results.get(BASE):
        ours = statistics_of(results, BASE, "mask/AP")
        band = slice(_place(ours.low, low, high), _place(ours.high, low, high) + 1)
        strip[:, band] = 228  # where a difference to static is within its own spread
    for tick in ticks:
        strip[:, _place(tick, low, high)] = 200
    own = statistics_of(results, name, "mask/AP")
    strip[middle, _place(own.low, low, high) : _place(own.high, low, high) + 1] = colour
    for result in results[name].values():
        centre = (_place(result["metrics"]["mask/AP"], low, high), middle)
        cv2.circle(strip, centre, 5, (255, 255, 255), -1, cv2.LINE_AA)
        cv2.circle(strip, centre, 5, colour, 1, cv2.LINE_AA)
    mean = _place(own.mean, low, high)
    strip[middle - 11 : middle + 12, mean - 1 : mean + 2] = colour
    return strip


def _bar(part: float, text: str, colour: tuple[int, int, int]) -> Image:
    cell = blank(HEIGHT, NARROW)
    cell[HEIGHT - 9 : HEIGHT - 4] = 238
    cell[HEIGHT - 9 : HEIGHT - 4, : max(1, round(part * NARROW))] = colour
    said = caption(text, 12)[: HEIGHT - 10, :NARROW]
    cell[1 : 1 + said.shape[0], : said.shape[1]] = said
    return cell


def _tick_labels(low: float, high: float, ticks: Sequence[float]) -> Image:
    strip = blank(20, WIDE + 24)
    for tick in ticks:
        text = caption(f"{tick:g}", 12)
        x = max(0, _place(tick, low, high) - text.shape[1] // 2)
        strip[: text.shape[0], x : x + text.shape[1]] = text[:20, : strip.shape[1] - x]
    return strip


def _key() -> Image:
    parts = []
    for what, colour in (("dynamic: backbone", BLUE), ("mask filter", ORANGE), ("none", BLACK)):
        square = blank(20, 14)
        square[6:15, 2:11] = colour
        parts.append(row(square, caption(what), gap=2))
    circle, line, band = blank(20, 16), blank(20, 10), blank(20, 18)
    cv2.circle(circle, (8, 10), 5, GREY, 1, cv2.LINE_AA)
    line[2:18, 4:7] = GREY
    band[3:17] = 228
    for sign, what in ((circle, "a seed"), (line, "mean"), (band, "range of static")):
        parts.append(row(sign, caption(what), gap=2))
    return row(*parts, gap=18)


def _fit(image: Image, height: int, width: int) -> Image:
    cell = blank(height, width)
    part = image[:height, :width]
    y = (height - part.shape[0]) // 2
    cell[y : y + part.shape[0], : part.shape[1]] = part
    return cell
