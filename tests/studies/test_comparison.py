"""The comparison's variants, images and results."""

import json
import runpy
import shutil
import sys
from pkgutil import resolve_name

import numpy as np
import pytest
import torch
from jsonargparse import set_parsing_settings
from studies.comparison import data, figure, page
from studies.comparison.change import kernel_change
from studies.comparison.compare import write
from studies.comparison.plan import Plan
from studies.comparison.squeeze import SEConv2d
from studies.comparison.trials import Budget, Setting, Trial
from studies.comparison.variants import CONV, FILTER, LAYERS, VARIANTS, WHERE, arguments
from support import tiny
from torch import nn

from condseg import layers
from condseg.cli.train import CommandLine
from condseg.data.images import read_image

TOOL = tiny.REPOSITORY / "tools" / "compare.py"
FAMILY = tuple(getattr(layers, n) for n in layers.__all__ if "2d" in n)
MACHINE = {"cpu": "a CPU", "cores": 2, "threads": 1, "torch": "2", "python": "3", "condseg": "0"}


def result(score):
    return {
        "metrics": {"mask/AP": score, "box/AP": score - 0.1},
        "diverged": False,
        "kernel_change": score / 8,
        "curve": {"steps": [2, 6], "losses": [4.0 - score, 2.0 - score]},
        "cpu_seconds": 120.0,
        "machine": MACHINE,
    }


def entry(values, rate=0.002, at_the_edge=False):
    tuning = {"0.001": 0.25, "0.002": 0.375 if values else None}
    seeds = {str(seed): result(score) for seed, score in enumerate(values)}
    return {"rate": rate, "at_the_edge": at_the_edge, "tuning": tuning, "seeds": seeds}


def costs(*names):
    cost = {
        "parameters": 5_000_000,
        "multiply_adds": 1_250_000_000,
        "latency_seconds": {"median": 0.0255, "q1": 0.025, "q3": 0.03},
        "peak_bytes": 3 * 2**20,
    }
    sizes = {"image": [192, 256], "batch": 4, "rounds": 30}
    variants = dict.fromkeys(names, cost)
    return {"machine": MACHINE | {"load_average_1min": 0.5}, **sizes, "variants": variants}


def content(*budgets, seeds=3, costs=None):
    """What comparison.json has; budgets are dicts of variant -> entry."""
    setting = {
        "configs": ["quickstart.yaml"],
        "data": "tabletop",
        "images": {"tuning": 200, "test": 400},
        "device": "cpu",
        "arguments": [],
    }
    listed = [{"steps": 8 * 10**i, "images": 336, "variants": b} for i, b in enumerate(budgets)]
    whole = {"setting": setting, "rates": [0.001, 0.002], "seeds": seeds, "tuning_seeds": 1}
    whole |= {"budgets": listed, "costs": costs}
    return whole | {"differences": page.differences(whole)}


STATIC = (0.30, 0.34, 0.38)
BETTER = (0.40, 0.44, 0.481)
WORSE = (0.20, 0.24, 0.279)
OPEN = (0.34, 0.33, 0.37)


@pytest.mark.parametrize("name", VARIANTS)
def test_each_variant_has_its_layers_and_trains(name, tmp_path):
    """Arguments of the configuration's own layer are not passed to the one that replaces it."""
    data = tiny.make_set(tmp_path / "data")
    own = tmp_path / "own.yaml"
    conv = {"class_path": "condseg.layers.ODConv2d", "init_args": {"reduction": 0.5}}
    own.write_text(f"model: {{network: {{backbone: {{conv: {json.dumps(conv)}}}}}}}")
    extra = (f"--config={own}", *arguments(VARIANTS[name]))
    set_parsing_settings(import_path_allowlist=[LAYERS])
    cli = CommandLine(tiny.arguments(data, tmp_path / "runs", *extra))
    modules = [m for m in cli.model.network.modules() if isinstance(m, (SEConv2d, *FAMILY))]
    overrides = {key: v for key, v in VARIANTS[name].overrides.items() if key in (CONV, FILTER)}
    assert bool(modules) == bool(overrides)
    for value in overrides.values():
        kind = resolve_name(value["class_path"])
        found = [m for m in modules if isinstance(m, kind)]
        assert found
        for key, number in value.get("init_args", {}).items():
            assert {getattr(m, key) for m in found} == {number}
    if name == "dyconv":
        hidden = {m.attention.fc1.out_channels for m in modules if isinstance(m, layers.DyConv2d)}
        assert hidden == {16 // 4 + 1, 32 // 4 + 1, 64 // 4 + 1, 8 // 4 + 1}
    batch = next(iter(cli.datamodule.train_dataloader()))
    torch.stack(list(cli.model.loss(batch).values())).sum().backward()
    first = modules[0] if modules else cli.model.network.mask_branch
    gradients = [p.grad for p in first.parameters() if p.requires_grad]
    assert gradients
    assert all(g is not None and g.isfinite().all() for g in gradients)


def test_variants():
    places = {str(v.overrides[WHERE]) for v in VARIANTS.values() if WHERE in v.overrides}
    assert places == {"[3, 4, 5]"}  # the same convolutions in all backbones
    assert {v.part for v in VARIANTS.values()} == set(figure.COLOURS)


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_squeeze_and_excitation(groups):
    """It starts as the static convolution; afterwards it is the convolution of its kernels."""
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 16, 3, padding=1, groups=groups)
    layer = SEConv2d.from_static(conv)
    x = torch.randn(3, 8, 6, 5)
    torch.testing.assert_close(layer(x), conv(x))
    for parameter in layer.attention_parameters():
        nn.init.normal_(parameter)
    kernels, biases = layer.kernel_and_bias(x)
    for i in range(3):
        alone = layer.to_static(kernels[i], biases[i])(x[i : i + 1])
        torch.testing.assert_close(layer(x)[i : i + 1], alone)
    assert not torch.allclose(kernels[0], kernels[1])
    norm = nn.BatchNorm2d(16).eval()
    for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        nn.init.uniform_(values, 0.5, 1.5)
    expected = norm(layer(x))
    assert layer.fold_norm_(norm)
    torch.testing.assert_close(layer(x), expected)
    means = x.mean((2, 3))
    hidden = torch.relu(means @ layer.attention[0].weight.flatten(1).T + layer.attention[0].bias)
    logits = hidden @ layer.attention[2].weight.flatten(1).T + layer.attention[2].bias
    torch.testing.assert_close(layer.attentions(x)["channel"], 2 * logits.sigmoid())


def test_the_hidden_width_is_that_of_odconv():
    for channels in (8, 480):
        hidden = {
            next(layer(channels, channels, 1).attention_parameters()).shape[0]
            for layer in (SEConv2d, layers.ODConv2d)
        }
        assert len(hidden) == 1


@pytest.mark.parametrize("shuffle", [False, True])
def test_training_tuning_and_test_images(shuffle, tmp_path):
    root = tiny.make_set(tmp_path / "data", train=12, val=5)
    sets = data.split(root, tmp_path / "out", 4, (3, 8), tests=2, shuffle=shuffle)
    read = {p.stem: json.loads(p.read_text()) for p in (tmp_path / "out").iterdir()}
    ids = {name: [image["id"] for image in part["images"]] for name, part in read.items()}
    whole = json.loads((root / "instances_train.json").read_text())
    assert {n: len(i) for n, i in ids.items()} == {
        "tuning": 4,
        "train_3": 3,
        "train_8": 8,
        "test": 2,
    }
    assert ids["train_8"][:3] == ids["train_3"]
    everything = [image["id"] for image in whole["images"]]
    assert (ids["tuning"] + ids["train_8"] == everything) == (not shuffle)
    assert set(ids["tuning"] + ids["train_8"]) == set(everything)
    objects = [a["id"] for n in ("tuning", "train_8") for a in read[n]["annotations"]]
    assert sorted(objects) == sorted(a["id"] for a in whole["annotations"])
    assert {a["image_id"] for a in read["tuning"]["annotations"]} <= set(ids["tuning"])
    assert sets.tests == 2
    assert (sets.images, sets.test_images) == (root / "train", root / "val")
    with pytest.raises(
        ValueError, match="9 training images and 4 tuning images are more than the 12"
    ):
        data.split(root, tmp_path / "out", 4, (9,))


def test_missing_scenes_are_generated_once(tmp_path, monkeypatch):
    generator = tmp_path / "generator.py"
    generator.write_text(
        "import json, sys; from pathlib import Path; folder = Path(sys.argv[1])\n"
        "with (folder / 'calls').open('a') as file: file.write(' '.join(sys.argv[2:]) + '\\n')\n"
        "for word in sys.argv[3:5]:\n"
        "    name, _, count = word[2:].partition('=')\n"
        "    path = folder / f'instances_{name}.json'\n"
        "    path.write_text(json.dumps({'images': [0] * int(count)}))\n"
    )
    monkeypatch.setattr(data, "GENERATOR", generator)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for train in (6, 6, 5, 9):
        folder = data.generate(train, 4, 1, 2)
    assert folder == tmp_path / "condseg" / "tabletop"
    expected = [f"--resume --train={n} --val=4 --seed=1 --styles=1 --workers=2" for n in (6, 9)]
    assert (folder / "calls").read_text().splitlines() == expected
    assert data.generate(6, 4, 8, 2) == tmp_path / "condseg" / "tabletop_8"
    generator.write_text("raise SystemExit(2)")
    with pytest.raises(ValueError, match="ended with code 2"):
        data.generate(10, 4, 1, 2)


def test_kernel_change(tmp_path):
    """Of final trainings with dynamic layers, on the test images."""
    sets = data.split(tiny.make_set(tmp_path / "data"), tmp_path / "annotations", 4, (8,))
    budget, device = Budget(8, 8), torch.device("cpu")
    final = {n: Trial(tmp_path, budget, "test", n, 0.1, 0) for n in ("static", "se")}
    conv = {"class_path": f"{LAYERS}.SEConv2d"}
    path = final["se"].runs / "tiny" / "version_0" / "checkpoints" / "best.ckpt"
    set_parsing_settings(import_path_allowlist=[LAYERS])
    tiny.write_checkpoint(path, backbone=tiny.BACKBONE | {"conv": conv})
    unchanged = kernel_change(final["se"], sets, device)  # the gates are still 1
    assert unchanged == pytest.approx(0, abs=1e-9)
    checkpoint = torch.load(path)
    for name, value in checkpoint["state_dict"].items():
        if "attention.2.weight" in name:
            value.normal_()
    torch.save(checkpoint, path)
    change = kernel_change(final["se"], sets, device)
    assert change is not None
    assert 1e-3 < change < 1
    assert kernel_change(final["static"], sets, device) is None
    assert kernel_change(Trial(tmp_path, budget, "tuning", "se", 0.1, 0), sets, device) is None


def test_differences():
    """Holm's factors are 3 for the smallest p value, then 2: the third claim is not known yet."""
    first = {"static": entry(STATIC), "odconv_1x": entry(BETTER), "se": entry(OPEN)}
    found = page.differences(content(first, {"static": entry(STATIC)} | {"dfn": entry(WORSE[:2])}))
    better, unclear, unfinished = found
    assert better["mean"] == pytest.approx(np.mean(BETTER) - np.mean(STATIC))
    assert better["corrected"] == pytest.approx(3 * better["p"])
    assert unclear["corrected"] == pytest.approx(min(1, 2 * unclear["p"]))
    assert [e["verdict"] for e in found] == ["better", "no difference shown", None]
    assert (unfinished["budget"], unfinished["variant"], unfinished["pairs"]) == (1, "dfn", 2)
    (worse,) = page.differences(content({"static": entry(STATIC), "dfn": entry(WORSE)}))
    assert worse["verdict"] == "worse"
    assert page.differences(content({"dfn": entry(WORSE)})) == []


def test_page():
    first = {"static": entry(STATIC), "odconv_1x": entry(BETTER, at_the_edge=True)}
    second = {"static": entry(STATIC[:2]), "odconv_1x": entry((), None)}
    text = page.page(content(first, second, costs=costs("static", "odconv_1x")))
    assert "**8 steps, 336 training images**" in text
    for row in (
        "| static | none | 0.002 | 3 | 0.340 ± 0.040 | - | - | - | 0.240 ± 0.040 | 4.2 % | 2.0 |",
        "| ODConv 1x | backbone | 0.002 | 3 | 0.440 ± 0.041 | +0.100 (+0.099 to +0.102) | 0.000 | ",
        "| 0.000 | better | 0.340 ± 0.041 | 5.5 % | 2.0 |",
    ):
        assert row in text
    assert "| ODConv 1x | backbone | - | 0 | - | - | - | - | - | - | - |" in text
    assert "| static | 5.00 M | 2.50 | 25.5 ms (25.0 to 30.0) | 1.00x | 3.0 MiB |" in text
    assert "| ODConv 1x | 0.001: 0.250, **0.002: 0.375** (edge) | 0.001: 0.250, 0.002: - |" in text
    assert "corrected for 2 claims" in text
    assert "a CPU, 2 cores" in text
    assert "192 x 256" in text
    unfinished = page.page(content({"static": entry(STATIC), "dfn": entry(WORSE[:2])}))
    assert "Costs: not measured yet." in unfinished
    assert " to -0.100) | - | unfinished | " in unfinished


def test_figure():
    first = {"static": entry(STATIC), "dfn": entry(BETTER), "dmnet": entry(())}
    without = figure.draw(content(first, first))
    assert len(without.axes) == 2 + figure.COLUMNS
    with_costs = figure.draw(content(first, costs=costs(*first)))
    differences, parameters, *_ = with_costs.axes
    assert len(with_costs.axes) == 1 + len(figure.COSTS) + figure.COLUMNS
    labels = [label.get_text() for label in differences.get_yticklabels()]
    assert labels == ["static", "DFN filter", "DMNet filter"]
    assert sorted(differences.lines[1].get_xdata()) == pytest.approx([0.1, 0.1, 0.101])
    assert [t.get_text() for t in differences.texts] == [" better"]
    assert [t.get_text() for t in parameters.texts] == ["5.0 M"] * 3
    curves = with_costs.axes[1 + len(figure.COSTS)].lines
    losses = [list(line.get_ydata()) for line in curves]
    assert losses == [pytest.approx([4 - np.mean(v), 2 - np.mean(v)]) for v in (STATIC, BETTER)]


def test_written_files(tmp_path):
    plan = Plan(tmp_path, (Budget(8, 3),), ("static", "dfn"), (0.001, 0.002), 1, 1)
    for trial in plan.trials():
        trial.folder.mkdir(parents=True)
        (trial.folder / "result.json").write_text(json.dumps(result(0.5)))
    setting = Setting(("quickstart.yaml",), "tabletop", {"tuning": 2, "test": 4}, "cpu")
    target = tmp_path / "docs" / "page.md"
    write(plan, setting, target)
    assert "0.001: 0.500" in target.read_text()
    names = {"page.md", "comparison.json", "comparison.png"}
    assert {p.name for p in target.parent.iterdir()} == names
    written = json.loads((tmp_path / "comparison.json").read_text())
    assert written["budgets"] == plan.results()
    assert "comparison.png" in (tmp_path / "comparison.md").read_text()
    assert read_image(tmp_path / "comparison.png").std() > 0


def call(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, args)])
    runpy.run_path(str(TOOL), run_name="__main__")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--seeds", 0), "seeds is 0; 1 or more is allowed"),
        (("--budgets", "0:336"), "budgets: '0:336'; STEPS:IMAGES is allowed"),
        (("--rates", "0.1"), "rates: [0.1]; two or more different positive ones are allowed"),
        (("--rates", "-1", "0.1"), "rates: [-1.0, 0.1]"),
        (("--variants", "static", "x"), "invalid choice: 'x'"),
        (("--data", "nowhere"), "nowhere"),
    ],
)
def test_errors_of_a_user(args, message, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, *args, "--output", tmp_path / "out")
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.tool
def test_the_whole_comparison(tmp_path, monkeypatch, capsys):
    root, output = tiny.make_set(tmp_path / "data"), tmp_path / "out"
    config, *more = tiny.arguments(root, tmp_path / "runs")
    own = ("trainer.max_steps", "trainer.val_check", "trainer.default_root", "temperature")
    own += ("data.root", "trainer.accelerator", "trainer.devices")
    more = [argument for argument in more if not argument[2:].startswith(own)]
    args = ["--config", config.partition("=")[2], "--variants", "static", "odconv_4x", "se"]
    args += ["--seeds", 1, "--budgets", "2:6", "--rates", 0.001, 0.002, "--data", root]
    args += ["--tuning-images", 4, "--device", "cpu", "--output", output]
    monkeypatch.setenv("PYTHONPATH", str(tiny.REPOSITORY))
    call(monkeypatch, *args, "--", *more)
    assert "9 trainings or more, 0 done before" in capsys.readouterr().out
    written = json.loads((output / "comparison.json").read_text())
    variants, measured = written["budgets"][0]["variants"], written["costs"]["variants"]
    for name, found in variants.items():
        assert 0 <= found["seeds"]["0"]["metrics"]["mask/AP"] <= 1
        assert len(found["seeds"]["0"]["curve"]["losses"]) == 2
        assert (found["seeds"]["0"]["kernel_change"] is None) == (name == "static")
        assert measured[name]["latency_seconds"]["median"] > 0
    for cost in ("parameters", "multiply_adds", "peak_bytes"):
        assert measured["odconv_4x"][cost] > measured["se"][cost] > measured["static"][cost] > 0
    last = variants["static"]
    folder = output / "trials" / "2_steps_6_images" / "test" / "static" / f"lr_{last['rate']:g}"
    shutil.rmtree(folder)
    call(monkeypatch, *args, "--", *more)
    again = json.loads((output / "comparison.json").read_text())["budgets"][0]["variants"]
    for name, found in again.items():
        assert found["seeds"]["0"]["metrics"] == variants[name]["seeds"]["0"]["metrics"]
