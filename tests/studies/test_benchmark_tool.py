"""The benchmark's subcommands on small shapes: what they run, compare and write."""

import dataclasses
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from studies.benchmarks import mask_head, model, subjects, train
from studies.benchmarks.compare import difference
from studies.benchmarks.session import Session
from studies.benchmarks.subjects import Shapes

from condseg.data.images import read_image

# pycocotools' own decode under NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TOOL = Path(__file__).parents[2] / "tools" / "benchmark.py"
CPU = torch.device("cpu")
SHAPES = dataclasses.replace(Shapes.quick(), picture=(64, 96), maps=(8, 12))


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Calls the tool as a user does; gives what it printed and the JSON that it wrote."""
    monkeypatch.setattr(Shapes, "quick", classmethod(lambda cls: SHAPES))
    monkeypatch.setattr(model, "compiles", lambda: False)  # takes a minute

    def call(command, *args):
        common = ["--quick", "--rounds", "1", "--output", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", ["tools/benchmark.py", command, *common, *args])
        runpy.run_path(str(TOOL), run_name="__main__")
        (file,) = tmp_path.glob(f"*-{command}.json")
        return capsys.readouterr().out, json.loads(file.read_text())

    return call


def test_a_network_of_random_weights_finds_what_it_must_and_its_masks_are_like_objects():
    fast = subjects.predictor(subjects.condinst(SHAPES, CPU), SHAPES, CPU)
    given = subjects.batch(SHAPES.picture, 1)
    (found,) = fast.predict(given)
    assert len(found) == SHAPES.detections
    part = found.masks.float().mean((1, 2))
    assert ((part > 0) & (part < 1)).float().mean() > 0.5
    # one piece, not noise: few pixels differ from their right-hand neighbour
    assert (found.masks[..., 1:] != found.masks[..., :-1]).float().mean() < 0.1
    assert difference(subjects.referenced(fast).predict(given), [found]) < 1e-4
    assert fast.network.implementation == "fast"


def test_torchvisions_mask_rcnn_finds_as_many():
    (found,) = subjects.mask_rcnn(SHAPES, CPU)()
    assert found["masks"].shape == (SHAPES.detections, 1, *SHAPES.picture)
    assert found["masks"].dtype == torch.bool


def test_both_forms_of_the_dynamic_parts_agree():
    for comparison in mask_head.comparisons(SHAPES, CPU):
        sides = comparison.build()
        assert list(sides) == ["fast", "reference"]
        first, second = (side() for side in sides.values())
        assert difference(first, second) < 1e-4, comparison.name


def test_every_line_of_the_table_has_its_sides_and_its_bars(monkeypatch):
    monkeypatch.setattr(model, "compiles", lambda: True)
    comparisons = [c for part in (mask_head, model, train) for c in part.comparisons(Shapes(), CPU)]
    lines = [line for comparison in comparisons for line in comparison.lines]
    assert len({line.what for line in lines}) == len(lines) == 19
    for comparison in comparisons:
        for line in comparison.lines:
            assert (line.faster is None) != (line.slower is None)
            assert comparison.memory or line.memory is None


def test_targets_writes_one_table_with_what_was_measured(run, tmp_path, monkeypatch):
    monkeypatch.setattr(subjects, "mask_rcnn", lambda *_: lambda: torch.ones(1))  # has its own test
    printed, content = run("targets")
    lines = [line for each in content["comparisons"] for line in each["lines"]]
    assert len(lines) == 17  # without the compiled
    (page,) = tmp_path.glob("*.md")
    (plot,) = tmp_path.glob("*.png")
    text = page.read_text()
    assert content["machine"]["torch"] in text
    assert read_image(plot).std() > 0
    for line in lines:
        time = line["time"]
        row = f"| {line['what']} | {time['median']:.2f}x ({time['q1']:.2f} to {time['q3']:.2f}) |"
        assert row in text
        assert row in printed
        assert line["difference"] is None or line["difference"] < 1e-4, line["what"]


def test_model_and_train_share_out_their_time(run):
    _, content = run("model", "--only", "megapixels")
    (table,) = content["tables"].values()
    assert list(table) == [*model.STAGES, "all"]
    assert all(set(row) == {"fast", "reference"} for row in table.values())
    assert [p["size"] for p in content["curves"]["megapixels"]] == [32 * 32 / 1e6, 64 * 96 / 1e6]
    _, content = run("train", "--only", "none of them")
    (table,) = content["tables"].values()
    assert list(table) == [*train.STAGES, "all"]


def test_curves_of_the_mask_head(run):
    _, content = run("mask-head", "--only", "instances")
    points = content["curves"]["instances"]
    assert [point["size"] for point in points] == list(SHAPES.instances)
    for point in points:
        for side in point["sides"].values():
            assert side["memory"]["peak"] > 0
            assert side["seconds"]["median"] > 0


def test_the_loaders_rate(run):
    printed, content = run("loader", "--workers", "0", "--batch_size", "2")
    assert list(content["tables"]["workers"]) == ["0"]
    assert "pictures/s" in printed


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--rounds", "0"), "rounds is 0"),
        (("--seconds", "0"), "seconds is 0"),
        (("--threads", "0"), "threads is 0"),
        (("--device", "gpu"), "device is 'gpu'"),
    ],
)
def test_a_users_error_is_one_line_and_code_2(monkeypatch, capsys, args, said):
    monkeypatch.setattr(sys, "argv", ["tools/benchmark.py", "targets", *args])
    monkeypatch.setattr(Session, "compare", lambda *_: pytest.fail("it began to measure"))
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(TOOL), run_name="__main__")
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
