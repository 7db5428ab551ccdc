"""Comparisons are judged by their samples; the commands run, compare and write on tiny shapes."""

import dataclasses
import json
import runpy
import sys

import pytest
import torch
from studies import measure
from studies.benchmarks import (
    annotations,
    compare,
    inputs,
    layers,
    loader,
    model,
    parts,
    session,
    subjects,
    train,
)
from studies.benchmarks.compare import Comparison, Line, difference
from studies.benchmarks.inputs import QUICK, Shapes
from support.tiny import REPOSITORY

from condseg.data.annotations import read_index
from condseg.structures import Detections

# pycocotools' own decode under NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TOOL = str(REPOSITORY / "tools" / "benchmark.py")
CPU = torch.device("cpu")
SHAPES = dataclasses.replace(QUICK, image=(64, 96), maps=(8, 12))


@pytest.fixture
def clock(monkeypatch):
    """A list whose one number is the time."""
    now = [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])
    return now


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Calls the tool in this process; returns its output and the JSON file."""
    monkeypatch.setattr(session, "QUICK", SHAPES)
    monkeypatch.setattr(model, "has_compiler", lambda: False)  # compiling takes a minute
    monkeypatch.setattr(subjects, "mask_rcnn", lambda *_: lambda: torch.ones(1))  # tested below

    def call(command, *args):
        common = ["--quick", "--rounds", "1", "--output", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", [TOOL, command, *common, *map(str, args)])
        runpy.run_path(TOOL, run_name="__main__")
        (file,) = tmp_path.glob(f"*{command}*.json")
        return capsys.readouterr().out, json.loads(file.read_text())

    return call


def test_a_comparison_measures_its_sides_in_turns(clock, monkeypatch):
    def taking(seconds, result=None):
        def run():
            clock[0] += seconds
            return result

        return run

    monkeypatch.setattr(compare, "peak_memory", lambda *_: {"peak": 1})
    x = torch.ones(3)
    sides = {"fast": taking(0.5, x), "published": taking(6, x * (1 + 1e-3)), "other": taking(0.75)}
    lines = (
        Line("fast", faster=11.0, memory=2.0),
        Line("other", "other", faster=9.0, same=False),
        Line("cost", "other", "fast", slower=1.4, same=False),
    )
    comparison = Comparison("name", lambda: sides, lines)
    result = comparison.measure(CPU, seconds=60.0, max_rounds=30)
    assert result["sides"]["fast"]["samples"] == [0.5] * 8  # of 7.25 s in all
    assert [line["time"]["median"] for line in result["lines"]] == [12, 8, 1.5]
    assert [line["reached"] for line in result["lines"]] == [True, False, False]
    assert result["lines"][0]["difference"] == pytest.approx(1e-3, rel=2e-3)
    assert result["lines"][1]["difference"] is None
    rounds = [comparison.measure(CPU, s, 30)["rounds"] for s in (1.0, 60.0, 1e6)]
    assert rounds == [5, 8, 30]


@pytest.mark.parametrize(
    ("line", "peaks", "reached"),
    [
        (Line("", faster=2.0), {}, True),
        (Line("", faster=3.0), {}, False),
        (Line("", faster=2.0, memory=0.5), {"fast": 10, "published": 20}, True),
        (Line("", faster=2.0, memory=0.5), {"fast": 11, "published": 20}, False),
        (Line("", faster=3.0, memory=0.5), {"fast": 10, "published": 20}, False),
        (Line("", slower=0.4), {}, True),
    ],
)
def test_a_line_is_reached_when_all_its_bars_are(line, peaks, reached):
    # round by round 2, 2.5 and 5 times as fast, although the means differ from that
    judged = line.judge({"fast": [1.0, 4.0, 1.0], "published": [2.0, 10.0, 5.0]}, peaks)
    assert judged["time"]["median"] == (0.4 if line.slower else 2.5)
    assert judged["reached"] is reached


def detections(boxes, labels, masks):
    return Detections(boxes, torch.full((len(boxes),), 0.5), torch.tensor(labels), masks)


def test_difference_is_the_largest_of_all_tensors():
    x = torch.tensor([3.0, 4.0])
    assert difference(x, x) == 0
    assert difference([x, (x + torch.tensor([0.0, 0.5]),)], [x, (x,)]) == 0.1
    masks = torch.zeros(1, 2, 4, dtype=torch.bool)
    other = masks.clone()
    other[0, 0, 0] = True
    one, two = (detections(torch.zeros(1, 4), [0], m) for m in (masks, other))
    assert difference([one], [two]) == 1 / 8
    assert difference(x, torch.zeros(3)) == float("inf")
    assert difference(x / 0, x) == difference(x, x * torch.nan) == float("inf")
    assert difference(torch.zeros(0), torch.zeros(0)) == 0


def test_difference_does_not_depend_on_the_order_of_detections():
    boxes = torch.tensor([[0.0, 0, 2, 2], [1, 1, 5, 5], [1, 1, 5, 5]])
    masks, labels = torch.arange(24).view(3, 2, 4) % 5 > 2, torch.tensor([0, 0, 1])
    base = detections(boxes, [0, 0, 1], masks)
    for order, same in (([2, 0, 1], True), ([2, 0, 0], False)):
        other = detections(boxes[order], labels[order].tolist(), masks[order])
        assert (difference([other], [base]) == 0) == same


def test_a_network_of_random_weights_detects_objects():
    fast = subjects.predictor(subjects.condinst(SHAPES, CPU), SHAPES, CPU)
    images = inputs.batch(SHAPES.image, 1)
    (found,) = fast.predict(images)
    assert len(found) == SHAPES.detections
    part = found.masks.float().mean((1, 2))
    assert ((part > 0) & (part < 1)).float().mean() > 0.5
    # one piece, not noise: few pixels differ from their right neighbour
    assert (found.masks[..., 1:] != found.masks[..., :-1]).float().mean() < 0.1
    published = subjects.published(fast)
    assert type(published.network.mask_head) is not type(fast.network.mask_head)
    assert difference(published.predict(images), [found]) < 1e-4


def test_torchvisions_mask_rcnn_detects_as_many():
    (found,) = subjects.mask_rcnn(SHAPES, CPU)()
    assert found["masks"].shape == (SHAPES.detections, 1, *SHAPES.image)
    assert found["masks"].dtype == torch.bool


def test_every_line_of_the_table_has_sides_and_bars(monkeypatch):
    monkeypatch.setattr(model, "has_compiler", lambda: True)
    comparisons = [c for part in (parts, model, train) for c in part.comparisons(Shapes(), CPU)]
    lines = [line for comparison in comparisons for line in comparison.lines]
    assert len({line.what for line in lines}) == len(lines) == 19
    for comparison in comparisons:
        for line in comparison.lines:
            assert (line.faster is None) != (line.slower is None)
            assert comparison.memory or line.memory is None


def test_targets(run, tmp_path, monkeypatch):
    peaks = {"counted": 1, "resident": 2, "peak": 2}
    monkeypatch.setattr(compare, "peak_memory", lambda *_: peaks)  # takes ten times as long
    printed, content = run("targets")
    lines = [line for each in content["comparisons"] for line in each["lines"]]
    assert len(lines) == 17  # without the compiled
    (page,) = tmp_path.glob("*.md")
    text = page.read_text()
    assert content["machine"]["torch"] in text
    assert len(list(tmp_path.glob("*.png"))) == 1
    for line in lines:
        row = f"| {line['what']} | {line['time']['median']:.2f}x ("
        assert row in text
        assert row in printed
        assert line["difference"] is None or line["difference"] < 1e-4, line["what"]


@pytest.mark.parametrize("name", ["model", "train"])
def test_stages(run, name):
    _, content = run(name, "--only", "nothing")
    (table,) = content["tables"].values()
    assert list(table) == [*{"model": model, "train": train}[name].STAGES, "all"]
    assert all(set(row) == {"fast", "published"} for row in table.values())


def test_curves(run):
    _, content = run("mask-head", "--only", "instances")
    points = content["curves"]["instances"]
    assert [point["size"] for point in points] == list(SHAPES.instances)
    for side in (side for point in points for side in point["sides"].values()):
        assert side["memory"]["peak"] > 0
        assert side["seconds"]["median"] > 0


def test_annotations(run, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(annotations, "QUICK", {"val2017": annotations.SetSize(20, 200)})
    _, content = run("annotations")
    (table,) = content["tables"].values()
    assert [name.split(": ")[1] for name in table] == list(annotations.SIDES)
    assert next(iter(table.values()))["time, pycocotools = 1"].startswith("1.000")


def test_loader(run):
    _, content = run("loader")
    speed, stages = content["tables"].values()
    assert set(speed) == {"condseg", "torchvision"}
    assert list(stages) == [*loader.STAGES, "all"]
    assert all(float(row["condseg"].split()[0]) > 0 for row in stages.values())


def test_a_json_as_large_as_cocos(tmp_path):
    size = annotations.SetSize(1000, 7000)
    path, images = annotations.write_set(tmp_path, "train2017", size)
    index = read_index(path)
    assert (len(index.images), len(index.objects), len(list(images.iterdir()))) == (
        1000,
        7000,
        1000,
    )
    assert len(index.categories) == 80
    assert index.objects["crowd"].mean() == pytest.approx(annotations.CROWDS, abs=0.005)
    assert path.stat().st_size / 7000 == pytest.approx(541e6 / 860_001, rel=0.1)


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])])
def test_layers(run, tmp_path, device):
    page = tmp_path / "page.md"
    printed, content = run("layers", "--page", page, "--device", device)
    assert ("gpu" in content["machine"]) == (device == "cuda")
    entries = content["layers"]
    names = "CondConv2d DyConv2d DyNetConv2d DynamicConv2d DynamicLocalFilter2d DynamicMaskHead"
    assert set(names.split()) < set(entries)
    assert entries["nn.Conv2d"]["parameters"] == 8 * 8 * 9 + 8
    assert entries["nn.Conv2d"]["multiply_adds"] == 2 * 36 * 8 * 8 * 9
    for name, entry in entries.items():
        assert f"`{name}`" in printed
        low, high = (entry["peak_bytes"][p] for p in layers.PASSES)
        assert 0 < low <= high
    assert content["machine"]["torch"] in page.read_text()
    assert len(list(tmp_path.glob("*.png"))) == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("layers", "--rounds", "0"), "rounds is 0"),
        (("targets", "--rounds", "0"), "rounds is 0"),
        (("targets", "--seconds", "0"), "seconds is 0"),
        (("targets", "--device", "gpu"), "device is 'gpu'"),
    ],
)
def test_a_users_error_is_one_line_and_code_2(monkeypatch, capsys, args, message):
    monkeypatch.setattr(sys, "argv", [TOOL, *args])
    monkeypatch.setattr(session, "machine", lambda *_: pytest.fail("it began to measure"))
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(TOOL, run_name="__main__")
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
