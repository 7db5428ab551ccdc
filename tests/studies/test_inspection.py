"""An inspection reports what dynamic layers compute."""

import json
import runpy
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from studies.inspection.figures import MAX_CLASSES, attention_figure, write_figures
from studies.inspection.observe import Observer, inspect
from support import tiny
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
    ODConv2d,
)

TOOL = str(tiny.REPOSITORY / "tools" / "inspect_layers.py")


def spec(name, **args):
    return {"class_path": f"condseg.layers.{name}", "init_args": args}


def write_checkpoint(path, conv=None, mask_filter=None):
    backbone = tiny.BACKBONE | {"conv": conv, "where": [5]}
    return tiny.write_checkpoint(path, backbone=backbone, mask_filter=mask_filter)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 80 * (i + 1), (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def run(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", [TOOL, *map(str, args)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(TOOL, run_name="__main__")
    return stop.value.code


class Guided(nn.Module):
    """A layer in a network, called with what the network is called with."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer.eval()

    def forward(self, *inputs):
        return self.layer(*inputs)


def observe(layer, inputs):
    network = Guided(layer)
    with Observer.attached(network) as observer, torch.no_grad():
        for i, each in enumerate(inputs):
            observer.image, observer.size = i, tuple(each[0].shape[-2:])
            network(*each)
    return observer.results()


def test_equal_experts_do_not_change_the_kernel():
    conv = nn.Conv2d(4, 4, 3, padding=1)
    layer = DyConv2d.from_static(conv, spread=0.0, num_experts=3)
    nn.init.normal_(layer.attention.fc2.weight)
    [record], _ = observe(layer, [(torch.randn(1, 4, 6, 6),) for _ in range(4)])
    assert record.change < 1e-9
    assert record.expert_similarity == pytest.approx(1)
    assert record.attention_change("kernel") > 1e-6


def test_change_is_the_fraction_of_the_kernels_energy_that_is_not_their_mean():
    layer = CondConv2d(4, 4, 3, num_experts=3)
    inputs = [torch.randn(1, 4, 6, 6) + i for i in range(4)]
    [record], _ = observe(layer, [(x,) for x in inputs])
    with torch.no_grad():
        stack = torch.stack([layer.kernel_and_bias(x)[0].flatten() for x in inputs]).double()
    expected = (stack - stack.mean(0)).square().sum(1).mean() / stack.square().sum(1).mean()
    assert record.change == pytest.approx(float(expected), rel=1e-6)


def test_a_kernel_of_a_guide_changes_with_the_guide():
    x, guides = torch.randn(1, 3, 6, 6), torch.randn(2, 1, 2, 6, 6)
    layer = DynamicConv2d(3, 3, 3, guide_channels=2)
    [record], _ = observe(layer, [(x, guide) for guide in guides])
    assert 0 < record.change < 1
    assert record.attentions == {}


def test_one_image_has_no_change():
    [record], _ = observe(ODConv2d(4, 4, 3), [(torch.randn(1, 4, 6, 6),)])
    assert np.isnan(record.change)
    assert np.isnan(record.attention_change("channel"))


def test_filters_pooled_from_the_content_have_weights_of_their_taps():
    [record], _ = observe(DynamicContextFilter2d(4, 4, 3), [(torch.randn(1, 4, 6, 6),)] * 2)
    np.testing.assert_allclose(record.attentions["spatial"].sum(1), 1, rtol=1e-6)
    assert record.change == pytest.approx(0, abs=1e-9)


def test_pixel_kernels_that_read_from_the_left_have_their_centre_of_mass_there():
    layer = DynamicLocalFilter2d(2, 1, kernel_size=3, dilation=3, softmax=False)
    last = layer.generator[-1]
    nn.init.zeros_(last.weight)
    last.bias.data = F.one_hot(torch.tensor(3), 9).float()  # the middle row's left tap
    [record], [pixels] = observe(layer, [(torch.randn(1, 2, 5, 6), torch.randn(1, 1, 5, 6))])
    np.testing.assert_allclose(pixels.shift[0], -3)
    np.testing.assert_allclose(pixels.shift[1], 0)
    np.testing.assert_allclose(pixels.off_centre, 1)
    np.testing.assert_allclose(pixels.energy, 1)
    assert pixels.change == record.change == 0


def test_pixel_kernels_change_with_the_guide():
    layer = DynamicDilatedPyramid2d(8, 8, 8, dilations=(1, 2))
    records, pixels = observe(layer, [(torch.randn(1, 8, 6, 6), torch.randn(1, 8, 6, 6))])
    assert [k.dilation for k in pixels] == [1, 2]
    assert all(0 < record.change < 1 for record in records)
    assert all((k.deviation**2).mean() == pytest.approx(k.change) for k in pixels)


@pytest.mark.parametrize(
    ("conv", "mask_filter", "files"),
    [
        (
            spec("ODConv2d", num_experts=2),
            spec("DynamicDilatedPyramid2d"),
            {"attention_channel.png", "attention_spatial.png", "experts.png", "pixels_000_0.png"},
        ),
        (spec("CondConv2d"), spec("DynamicMultiScaleFilter2d"), {"attention_spatial.png"}),
        (spec("DyNetConv2d"), spec("DynamicLocalFilter2d"), {"pixels_000_0.png"}),
    ],
    ids=["odconv-hdfnet", "condconv-dmnet", "dynet-dfn"],
)
def test_the_command(tmp_path, images, monkeypatch, capsys, conv, mask_filter, files):
    checkpoint = write_checkpoint(tmp_path / "a.ckpt", conv, mask_filter)
    out = tmp_path / "out"
    args = ("--checkpoint", checkpoint, "--output", out, "--score", 0.001, "--figures", 1)
    assert run(monkeypatch, images, *args) == 0
    assert "3 images; detected with a score >= 0.001:" in capsys.readouterr().out
    written = {path.name for path in out.iterdir()}
    assert files | {"layers.png", "attention_kernel.png", "inspection.json"} <= written
    assert all(read_image(path).std() > 0 for path in out.glob("*.png"))
    content = json.loads((out / "inspection.json").read_text())
    assert content["checkpoint"] == str(checkpoint)
    assert len(content["images"]) == 3
    names = [layer["name"] for layer in content["layers"]]
    assert any("mask_branch.filter" in name for name in names)
    assert any("backbone" in name for name in names)


def test_classes_are_those_that_the_model_detects(tmp_path, images):
    checkpoint = write_checkpoint(tmp_path / "a.ckpt", spec("DyConv2d"))
    predictor = Predictor.from_checkpoint(checkpoint, "cpu")
    none = inspect(predictor, [str(images)], score=1.0)
    assert none.classes == {}
    assert write_figures(none, tmp_path / "none")
    some = inspect(predictor, [str(images)], score=0.001)
    assert set(some.classes) <= set(predictor.names)
    layer = some.layers[0]
    for name, at in some.classes.items():
        mean = layer.attentions["kernel"][at].mean(0)
        np.testing.assert_array_equal(some.by_class(layer, "kernel")[name], mean)
    some.classes.clear()
    some.classes.update({f"class {i}": [0] for i in range(MAX_CLASSES + 9)})
    drawn = attention_figure(some, "kernel").axes[1]
    assert len(drawn.get_yticklabels()) == MAX_CLASSES


def test_a_single_image_and_one_that_cannot_be_read(tmp_path, images, monkeypatch, capsys):
    checkpoint = write_checkpoint(tmp_path / "a.ckpt", spec("ODConv2d", num_experts=1))
    (images / "broken.png").write_bytes(b"\x89PNG")
    args = (images / "0.png", images / "broken.png", "--checkpoint", checkpoint)
    assert run(monkeypatch, *args, "--output", tmp_path / "out") == 1
    printed = capsys.readouterr().out
    assert "broken.png" in printed
    assert "needs two images or more" in printed


def test_errors_of_a_user(tmp_path, images, monkeypatch, capsys):
    checkpoint = tiny.write_checkpoint(tmp_path / "static.ckpt")
    assert run(monkeypatch, images, "--checkpoint", checkpoint) == 2
    assert "has no dynamic layer" in capsys.readouterr().err
    dynamic = write_checkpoint(tmp_path / "a.ckpt", spec("ODConv2d"))
    predictor = Predictor.from_checkpoint(dynamic, "cpu")
    with pytest.raises(ValueError, match="score is 7"):
        inspect(predictor, [str(images)], score=7.0)
    with pytest.raises(ValueError, match="no image to inspect"):
        inspect(predictor, [str(tmp_path / "absent")])
