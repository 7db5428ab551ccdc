"""Ratios, bars and differences are what the samples say, by a clock of the test's."""

import sys

import numpy as np
import pytest
import torch
from studies.benchmarks import measure
from studies.benchmarks.compare import (
    Comparison,
    Line,
    bars_table,
    difference,
    judge,
    sides_table,
)
from studies.benchmarks.measure import peak_memory, peak_resident, rounds_within
from studies.benchmarks.report import curve_plot, curve_table, stage_table, table_of

from condseg.structures import Detections

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """A list whose one number is the time."""
    now = [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])
    return now


def taking(clock, seconds, result=None):
    def run():
        clock[0] += seconds
        return result

    return run


def test_a_comparison_measures_its_sides_in_turns_and_judges_its_lines(clock):
    x = torch.ones(3)
    sides = {
        "fast": taking(clock, 0.5, x),
        "reference": taking(clock, 6, x * (1 + 1e-3)),
        "other": taking(clock, 0.75),
    }
    lines = (
        Line("fast v reference", faster=11.0, memory=2.0),
        Line("other v reference", "other", faster=9.0, same=False),
        Line("cost", "other", "fast", slower=1.4, same=False),
        Line("no bar", "other", "fast", same=False),
    )
    found = Comparison("name", lambda: sides, lines).measure(CPU, seconds=60.0, most=30)
    assert found["rounds"] == 8
    assert found["sides"]["fast"]["samples"] == [0.5] * 8
    first, second, third, fourth = found["lines"]
    assert first["time"] == {"median": 12, "q1": 12, "q3": 12}
    assert first["difference"] == pytest.approx(1e-3, rel=2e-3)
    assert second["time"]["median"] == 8
    assert third["time"]["median"] == 1.5
    assert [line["reached"] for line in found["lines"]] == [True, False, False, None]
    assert second["difference"] is fourth["difference"] is None
    printed = bars_table(found["lines"])
    assert "| fast v reference | 12.00x (12.00 to 12.00) | 11x |" in printed
    assert "| at most 1.4x |" in printed
    assert "1.0e-03" in sides_table([found])


@pytest.mark.parametrize(
    ("line", "peaks", "reached"),
    [
        (Line("", faster=2.0), {}, True),
        (Line("", faster=3.0), {}, False),
        (Line("", faster=2.0, memory=0.5), {"fast": 10, "reference": 20}, True),
        (Line("", faster=2.0, memory=0.5), {"fast": 11, "reference": 20}, False),
        (Line("", faster=3.0, memory=0.5), {"fast": 10, "reference": 20}, False),
        (Line("", slower=0.4), {}, True),
    ],
)
def test_a_line_is_reached_when_all_its_bars_are(line, peaks, reached):
    # round by round 2, 2.5 and 5 times as fast, although the means say otherwise
    seconds = {"fast": [1.0, 4.0, 1.0], "reference": [2.0, 10.0, 5.0]}
    judged = judge(line, seconds, peaks, {})
    assert judged["time"]["median"] == (0.4 if line.slower else 2.5)
    assert judged["reached"] is reached


def test_the_number_of_rounds_fills_the_time_within_its_limits(clock):
    runs = {"a": taking(clock, 2), "b": taking(clock, 3)}
    assert rounds_within(runs, CPU, 52.0, 2, 30) == 10
    assert rounds_within(runs, CPU, 1.0, 2, 30) == 2
    assert rounds_within(runs, CPU, 1e6, 2, 30) == 30


def test_difference_is_the_largest_over_everything_inside():
    x = torch.tensor([3.0, 4.0])
    assert difference(x, x) == 0
    assert difference([x, {"y": x + torch.tensor([0.0, 0.5])}], [x, {"y": x}]) == 0.1
    masks = torch.zeros(1, 2, 4, dtype=torch.bool)
    other = masks.clone()
    other[0, 0, 0] = True
    found = [Detections(torch.zeros(1, 4), torch.ones(1), torch.zeros(1, dtype=torch.int64), m)
             for m in (masks, other)]  # fmt: skip
    assert difference(found[:1], found[1:]) == 1 / 8
    assert difference(x, torch.zeros(3)) == float("inf")
    assert difference(x / 0, x) == difference(x, x * torch.nan) == float("inf")
    assert difference(torch.zeros(0), torch.zeros(0)) == 0


def test_difference_knows_detections_in_another_order():
    boxes = torch.tensor([[0.0, 0, 2, 2], [1, 1, 5, 5], [1, 1, 5, 5]])
    masks = torch.arange(24).view(3, 2, 4) % 5 > 2
    found = Detections(boxes, torch.full((3,), 0.5), torch.tensor([0, 0, 1]), masks)

    def ordered(*order: int) -> Detections:
        parts = (found.boxes, found.scores, found.labels, found.masks)
        return Detections(*(part[list(order)] for part in parts))

    assert difference([ordered(2, 0, 1)], [found]) == 0
    assert difference([ordered(2, 0, 0)], [found]) > 0.1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_resident_memory_has_what_pytorch_does_not_count():
    size = 32 << 20
    run = lambda: np.ones(size, dtype=np.uint8)  # noqa: E731
    grown = peak_resident(run)
    assert grown is not None
    assert 0.95 * size < grown < 1.2 * size  # the system counts in batches of pages
    peaks = peak_memory(run, CPU)
    assert peaks["counted"] == 0
    assert peaks["peak"] == peaks["resident"] > 0.95 * size


def test_tables_and_plots_of_curves_and_stages():
    def side(ms, mib):
        return {"seconds": {"median": ms / 1e3}, "memory": {"peak": mib << 20}}

    points = [
        {"size": n, "sides": {"fast": side(n, 1), "reference": side(10 * n, n)}}
        for n in (1, 10, 2000)
    ]
    assert "| 2,000 | 2,000.00 | 20,000.00 | 1.0 | 2,000.0 |" in curve_table("instances", points)
    plot = curve_plot("instances", points)
    assert (plot == (0, 114, 178)).all(-1).sum() > 100
    assert (plot == (213, 94, 0)).all(-1).sum() > 100
    table = stage_table({"fast": [{"a": 1.0, "b": 3.0}] * 3}, ("a", "b"))
    assert table_of("stage", table).splitlines()[2:] == [
        "| a | 1,000.0 (25.0%) |",
        "| b | 3,000.0 (75.0%) |",
        "| all | 4,000.0 (100.0%) |",
    ]
