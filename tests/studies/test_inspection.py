"""What is seen inside of dynamic layers is what they do."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from studies.inspection.figures import MOST_CLASSES, write_figures
from studies.inspection.inspection import _watch, attentions, inspect, kernels
from support import tiny_model
from torch import nn

from condseg.data.images import read_image
from condseg.inference.predictor import Predictor
from condseg.layers import (
    CondConv2d,
    DyConv2d,
    DynamicContextFilter2d,
    DynamicConv2d,
    DynamicDilatedPyramid2d,
    DynamicLocalFilter2d,
    DyNetConv2d,
    ODConv2d,
)
from condseg.zoo.checkpoint import RECIPE, build

TOOL = Path(__file__).parents[2] / "tools" / "inspect_layers.py"


def spec(name, **args):
    return {"class_path": f"condseg.layers.{name}", "init_args": args}


def write_checkpoint(path, conv=None, mask_filter=None):
    model = {
        "network": {
            "backbone": {**tiny_model.BACKBONE, "conv": conv},
            **tiny_model.PARTS,
            "mask_filter": mask_filter,
        },
        "postprocess": tiny_model.POSTPROCESS,
    }
    torch.manual_seed(0)
    network, _ = build(model)
    recipe = {
        "model": model,
        "categories": tiny_model.CATEGORIES,
        "short_side": 64,
        "max_long_side": 96,
    }
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": state, RECIPE: recipe}, path)
    return path


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 80 * (i + 1), (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def run(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, args)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(TOOL), run_name="__main__")
    return stop.value.code


@pytest.mark.parametrize("kind", [CondConv2d, DyConv2d, DyNetConv2d, ODConv2d, DynamicConv2d])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_the_kernel_that_is_shown_is_the_one_that_convolves(kind, groups):
    layer = kind(4, 4, (3, 5), padding=1, groups=groups, bias=False).eval()
    x = torch.randn(1, 4, 9, 8)
    with torch.no_grad():
        kernel = kernels(layer, x)
        y = F.conv2d(x, kernel.reshape(layer.kernel_shape), padding=1, groups=groups)
        torch.testing.assert_close(y, layer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [CondConv2d, DyConv2d, DyNetConv2d, ODConv2d])
def test_attentions_have_an_entry_for_each_of_what_they_weigh(kind):
    found = attentions(kind(4, 6, 3, num_experts=2).eval(), torch.randn(5, 4, 7, 7))
    sizes = {"kernel": 2, "filter": 6, "channel": 4, "spatial": 9}
    assert found
    for axis, values in found.items():
        assert values.shape == (5, sizes[axis])


def watch_all(layer, inputs):
    with _watch(layer) as watched, torch.no_grad():
        for i, one in enumerate(inputs):
            watched.begin(i, tuple(one[0].shape[-2:]))
            layer(*one)
    return watched.results()


def test_a_kernel_that_never_changes_has_change_zero_and_experts_alike():
    conv = nn.Conv2d(4, 4, 3, padding=1)
    network = nn.Sequential(DyConv2d.from_static(conv, spread=0.0, num_experts=3)).eval()
    [record], _ = watch_all(network, [(torch.randn(1, 4, 6, 6),) for _ in range(4)])
    assert record.change < 1e-9
    assert record.likeness == pytest.approx(1)
    assert record.attention_change("kernel") > 1e-6
    assert 1 < record.experts_in_use <= 3


def test_change_is_the_share_of_the_kernels_energy_that_is_not_their_mean():
    network = nn.Sequential(CondConv2d(4, 4, 3, num_experts=3)).eval()
    inputs = [torch.randn(1, 4, 6, 6) + i for i in range(4)]
    [record], _ = watch_all(network, [(x,) for x in inputs])
    with torch.no_grad():
        stack = torch.stack([kernels(network[0], x).flatten() for x in inputs]).double()
    expected = (stack - stack.mean(0)).square().sum(1).mean() / stack.square().sum(1).mean()
    assert record.change == pytest.approx(float(expected), rel=1e-6)


def test_one_picture_says_nothing_of_change():
    [record], _ = watch_all(nn.Sequential(ODConv2d(4, 4, 3).eval()), [(torch.randn(1, 4, 6, 6),)])
    assert np.isnan(record.change)
    assert np.isnan(record.attention_change("channel"))


class Pair(nn.Module):
    """A layer with a guide, inside of a network."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, guide):
        return self.layer(x, guide)


def test_pixel_kernels_that_look_to_the_left_have_their_centre_there():
    layer = DynamicLocalFilter2d(2, 1, kernel_size=3, dilation=3, softmax=False)
    last = layer.generator[-1]
    nn.init.zeros_(last.weight)
    last.bias.data = F.one_hot(torch.tensor(3), 9).float()  # the middle row's left tap
    [record], [seen] = watch_all(Pair(layer), [(torch.randn(1, 2, 5, 6), torch.randn(1, 1, 5, 6))])
    np.testing.assert_allclose(seen.shift[0], -3)
    np.testing.assert_allclose(seen.shift[1], 0)
    np.testing.assert_allclose(seen.beside, 1)
    np.testing.assert_allclose(seen.energy, 1)
    assert seen.change == record.change == 0


def test_a_guide_that_changes_makes_pixel_kernels_that_change():
    layer = Pair(DynamicDilatedPyramid2d(8, 8, 8, dilations=(1, 2)).eval())
    records, seen = watch_all(layer, [(torch.randn(1, 8, 6, 6), torch.randn(1, 8, 6, 6))])
    assert [k.dilation for k in seen] == [1, 2]
    assert all(0 < record.change < 1 for record in records)
    assert all((k.departure**2).mean() == pytest.approx(k.change) for k in seen)


def test_content_filters_are_seen_as_shares_of_their_taps():
    layer = DynamicContextFilter2d(4, 4, 3).eval()
    found = attentions(layer, torch.randn(2, 4, 6, 6))["spatial"]
    torch.testing.assert_close(found.sum(1), torch.ones(2))


@pytest.mark.parametrize(
    ("conv", "mask_filter", "files"),
    [
        (
            spec("ODConv2d", num_experts=2),
            spec("DynamicDilatedPyramid2d"),
            {"attention_channel.png", "attention_spatial.png", "experts.png", "pixels_000_0.png"},
        ),
        (spec("CondConv2d"), spec("DynamicMultiScaleFilter2d"), {"attention_spatial.png"}),
        (spec("DyNetConv2d"), spec("DynamicLocalFilter2d"), {"pixels_001_1.png"}),
    ],
    ids=["odconv-hdfnet", "condconv-dmnet", "dynet-dfn"],
)
def test_the_tool_as_a_user_calls_it(
    tmp_path, pictures, monkeypatch, capsys, conv, mask_filter, files
):
    checkpoint = write_checkpoint(tmp_path / "a.ckpt", conv, mask_filter)
    out = tmp_path / "out"
    code = run(
        monkeypatch, pictures, "--checkpoint", checkpoint, "--output", out, "--score", "0.001"
    )
    assert code == 0
    assert "3 pictures; found with a score >= 0.001:" in capsys.readouterr().out
    written = {path.name for path in out.iterdir()}
    assert files | {"layers.png", "attention_kernel.png", "inspection.json"} <= written
    assert all(read_image(path).std() > 0 for path in out.glob("*.png"))
    content = json.loads((out / "inspection.json").read_text())
    assert content["checkpoint"] == str(checkpoint)
    assert len(content["pictures"]) == 3
    names = [layer["name"] for layer in content["layers"]]
    assert any("mask_branch.filter" in name for name in names)
    assert any("backbone" in name for name in names)


def test_classes_are_those_that_the_model_finds_and_many_are_cut_off(tmp_path, pictures):
    checkpoint = write_checkpoint(tmp_path / "a.ckpt", spec("DyConv2d"))
    predictor = Predictor.from_checkpoint(checkpoint, "cpu")
    strict = inspect(predictor, [str(pictures)], score=1.0)
    assert strict.classes == {}
    assert write_figures(strict, tmp_path / "none")
    loose = inspect(predictor, [str(pictures)], score=0.001)
    assert set(loose.classes) <= {"cup", "fork", "spoon"}
    layer = loose.layers[0]
    for name, at in loose.classes.items():
        mean = layer.attentions["kernel"][at].mean(0)
        np.testing.assert_array_equal(loose.by_class(layer, "kernel")[name], mean)
    many = {f"class {i}": [0] for i in range(MOST_CLASSES + 9)}
    loose.classes.clear()
    loose.classes.update(many)
    assert write_figures(loose, tmp_path / "many")


def test_a_single_picture_and_one_that_cannot_be_read(tmp_path, pictures, monkeypatch, capsys):
    checkpoint = write_checkpoint(tmp_path / "a.ckpt", spec("ODConv2d", num_experts=1))
    (pictures / "broken.png").write_bytes(b"\x89PNG")
    args = (pictures / "0.png", pictures / "broken.png", "--checkpoint", checkpoint)
    assert run(monkeypatch, *args, "--output", tmp_path / "out") == 1
    printed = capsys.readouterr().out
    assert "broken.png: cannot be read" in printed
    assert "needs two pictures or more" in printed


def test_a_static_model_has_nothing_to_look_at(tmp_path, pictures, monkeypatch, capsys):
    checkpoint = tiny_model.write_checkpoint(tmp_path / "a.ckpt")
    assert run(monkeypatch, pictures, "--checkpoint", checkpoint) == 2
    assert "there is no dynamic layer to look at" in capsys.readouterr().err


def test_errors_name_the_value(tmp_path, pictures):
    checkpoint = write_checkpoint(tmp_path / "a.ckpt", spec("ODConv2d"))
    predictor = Predictor.from_checkpoint(checkpoint, "cpu")
    with pytest.raises(ValueError, match="score is 7"):
        inspect(predictor, [str(pictures)], score=7.0)
    with pytest.raises(ValueError, match="no picture to look at"):
        inspect(predictor, [str(tmp_path / "absent")])
