"""Counts, samples and ratios are right; tables and charts show them."""

import sys

import numpy as np
import pytest
import torch
from studies.benchmarks.page import bars_table, chart, curve_table, stage_cells
from studies.charts import save
from studies.measure import (
    Spread,
    interleaved,
    multiply_adds,
    peak_bytes,
    peak_memory,
    peak_resident,
    ratios,
)
from studies.report import write_between
from torch import nn

from condseg.data.images import read_image
from condseg.layers.local_filter import filter_locally

CPU = torch.device("cpu")
MIB = 1 << 20


def test_multiply_adds_of_a_convolution_and_of_filters_at_each_pixel():
    conv, x = nn.Conv2d(3, 5, 3, padding=1, bias=False), torch.randn(2, 3, 4, 6)
    assert multiply_adds(lambda: conv(x)) == 2 * 4 * 6 * 5 * 3 * 9
    filters = torch.randn(2, 3, 9, 4, 6)
    assert multiply_adds(lambda: filter_locally(x, filters, (3, 3))) == 2 * 3 * 9 * 4 * 6


def test_peak_bytes_counts_what_is_held_at_one_time():
    def one_after_the_other():
        for _ in range(3):
            torch.empty(MIB, dtype=torch.uint8)

    def at_once():
        return [torch.empty(MIB, dtype=torch.uint8) for _ in range(3)]

    assert peak_bytes(one_after_the_other, CPU) == pytest.approx(MIB, abs=4096)
    assert peak_bytes(at_once, CPU) == pytest.approx(3 * MIB, abs=4096)


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is known on Linux only")
def test_resident_memory_includes_what_pytorch_does_not_count():
    size = 32 * MIB
    run = lambda: np.ones(size, dtype=np.uint8)  # noqa: E731
    grown = peak_resident(run)
    assert grown is not None
    assert 0.95 * size < grown < 1.2 * size  # the system counts in batches of pages
    peaks = peak_memory(run, CPU)
    assert peaks["counted"] == 0
    assert peaks["peak"] == peaks["resident"] > 0.95 * size


def test_runs_take_turns():
    order = []
    runs = {name: lambda name=name: order.append(name) for name in "ab"}
    seconds = interleaved(runs, CPU, rounds=4, warm_up=1)
    assert {name: len(values) for name, values in seconds.items()} == {"a": 4, "b": 4}
    assert "".join(order) == "ba" + "ab" + "ba" + "ab" + "ba"


def test_ratios_are_of_the_same_round():
    seconds = {"a": [1.0, 10.0, 1.0], "b": [2.0, 20.0, 2.0]}
    assert ratios(seconds, "b", "a") == Spread(2.0, 2.0, 2.0)
    assert Spread.of([3.0]) == Spread(3.0, 3.0, 3.0)


def test_a_table_replaces_its_predecessor_and_nothing_else(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("above\n\n<!-- x -->\nold\n<!-- /x -->\n\nbelow\n")
    write_between(page, "x", "new")
    write_between(page, "x", "newer")
    assert page.read_text() == "above\n\n<!-- x -->\nnewer\n<!-- /x -->\n\nbelow\n"
    write_between(page, "y", "other")
    assert page.read_text().endswith("below\n\n<!-- y -->\nother\n<!-- /y -->\n")
    page.write_text("<!-- x -->\n")
    with pytest.raises(ValueError, match="no '<!-- /x -->'"):
        write_between(page, "x", "new")


def test_tables_and_chart(tmp_path):
    def side(ms, mib):
        return {"seconds": {"median": ms / 1e3}, "memory": {"peak": mib * MIB}}

    points = [
        {"size": n, "sides": {"fast": side(n, 1), "published": side(10 * n, n)}}
        for n in (1, 10, 2000)
    ]
    assert "| 2,000 | 2,000.00 | 20,000.00 | 1.0 | 2,000.0 |" in curve_table("instances", points)
    rounds = iter([{"a": 9.0, "b": 9.0}, *[{"a": 1.0, "b": 3.0}] * 3])  # the first is warm-up
    stages = stage_cells({"fast": rounds.__next__}, ("a", "b"), rounds=3)
    assert stages == {
        "a": {"fast": "1,000.0 (25.0%)"},
        "b": {"fast": "3,000.0 (75.0%)"},
        "all": {"fast": "4,000.0 (100.0%)"},
    }
    bars = {"faster": 10.0, "slower": None, "memory": 0.5, "memory_bar": None, "reached": True}
    line = {"what": "a line", "time": {"median": 12.0, "q1": 11.0, "q3": 13.0}, **bars}
    assert "| a line | 12.00x (11.00 to 13.00) | 10x | 0.50x | none | yes |" in bars_table([line])
    content = {
        "machine": {"cpu": "a CPU", "threads": 1, "torch": "2"},
        "comparisons": [{"lines": [line]}],
        "curves": {"instances": points},
    }
    figure = chart(content)
    assert [len(part.axes) for part in figure.subfigs] == [1, 2]
    ratio, time, memory = figure.axes
    assert [text.get_text() for text in ratio.get_yticklabels()] == ["a line"]
    assert list(time.lines[1].get_ydata()) == [10, 100, 20000]
    assert list(memory.lines[1].get_ydata()) == [1, 10, 2000]
    assert read_image(save(figure, tmp_path / "chart.png")).std() > 0
