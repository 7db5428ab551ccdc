"""What the benchmark says is what was counted and measured."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from studies.benchmarks import layers
from studies.benchmarks.measure import (
    Spread,
    interleaved,
    multiply_adds,
    peak_bytes,
    ratios,
)
from studies.benchmarks.report import write_between
from torch import nn

from condseg.data.images import read_image
from condseg.layers.local_filter import filter_locally

TOOL = Path(__file__).parents[2] / "tools" / "benchmark.py"
CPU = torch.device("cpu")


def run(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, args)])
    runpy.run_path(str(TOOL), run_name="__main__")


def test_multiply_adds_of_a_convolution_and_of_filters_at_each_pixel():
    conv, x = nn.Conv2d(3, 5, 3, padding=1, bias=False), torch.randn(2, 3, 4, 6)
    assert multiply_adds(lambda: conv(x)) == 2 * 4 * 6 * 5 * 3 * 9
    filters = torch.randn(2, 3, 9, 4, 6)
    assert multiply_adds(lambda: filter_locally(x, filters, (3, 3))) == 2 * 3 * 9 * 4 * 6


def test_peak_bytes_counts_what_is_held_at_one_time():
    megabyte = 1 << 20
    kept = []

    def one_after_the_other():
        for _ in range(3):
            torch.empty(megabyte, dtype=torch.uint8)

    def at_once():
        kept.extend(torch.empty(megabyte, dtype=torch.uint8) for _ in range(3))
        kept.clear()

    assert peak_bytes(one_after_the_other, CPU) == pytest.approx(megabyte, abs=4096)
    assert peak_bytes(at_once, CPU) == pytest.approx(3 * megabyte, abs=4096)


def test_samples_are_taken_in_turns():
    order = []
    runs = {name: lambda name=name: order.append(name) for name in "ab"}
    seconds = interleaved(runs, CPU, rounds=4, warm_up=1)
    assert {name: len(values) for name, values in seconds.items()} == {"a": 4, "b": 4}
    assert "".join(order) == "ba" + "ab" + "ba" + "ab" + "ba"
    with pytest.raises(ValueError, match="rounds is 0"):
        interleaved(runs, CPU, rounds=0)


def test_ratios_are_of_the_same_round():
    seconds = {"a": [1.0, 10.0, 1.0], "b": [2.0, 20.0, 2.0]}
    assert ratios(seconds, "b", "a") == Spread(2.0, 2.0, 2.0)
    assert Spread.of([3.0]) == Spread(3.0, 3.0, 3.0)


def test_a_table_replaces_the_one_before_and_nothing_else(tmp_path):
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


def test_the_tool_as_a_user_calls_it(tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    shape = ("--channels", 8, "--size", 6, "--batch", 2, "--instances", 3, "--rounds", 2)
    run(monkeypatch, "layers", *shape, "--output", tmp_path, "--page", page)
    printed = capsys.readouterr().out
    content = json.loads((tmp_path / "layers_cpu.json").read_text())
    entries = content["layers"]
    names = "CondConv2d DyConv2d DyNetConv2d DynamicConv2d DynamicLocalFilter2d DynamicMaskHead"
    assert set(names.split()) < set(entries)
    assert entries["nn.Conv2d"]["parameters"] == 8 * 8 * 9 + 8
    assert entries["nn.Conv2d"]["multiply_adds"] == 2 * 36 * 8 * 8 * 9
    for name, entry in entries.items():
        assert f"`{name}`" in printed
        assert entry["multiply_adds"] > 0
        low, high = (entry["peak_bytes"][p] for p in layers.PASSES)
        assert 0 < low <= high
    assert content["machine"]["torch"] in page.read_text()
    assert read_image(tmp_path / "layers_cpu.png").std() > 0


@pytest.mark.parametrize(
    ("args", "said"), [(("--channels", "0"), "channels is 0"), (("--kernel_size", "2"), "odd")]
)
def test_a_users_error_is_one_line_and_code_2(monkeypatch, capsys, args, said):
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "layers", *args)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda(tmp_path, monkeypatch):
    shape = ("--channels", 8, "--size", 6, "--batch", 2, "--instances", 3, "--rounds", 2)
    run(monkeypatch, "layers", *shape, "--output", tmp_path, "--device", "cuda")
    content = json.loads((tmp_path / "layers_cuda.json").read_text())
    assert content["machine"]["gpu"]
