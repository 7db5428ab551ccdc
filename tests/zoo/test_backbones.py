"""Checkpoints of classifiers and detectors as weights of a backbone, static and dynamic."""

import functools

import pytest
import torch
from support import foreign
from support.key_lists import needs_key_lists, read
from support.networks import tiny_backbone
from support.rtmdet_tensors import checkpoint
from torchvision.models import mobilenet_v2

from condseg.layers import DeformConv2d, ODConv2d
from condseg.layers.networks import od_resnet18
from condseg.models.backbones.backbone import Backbone
from condseg.models.pyramids.bifpn import BiFPN


@needs_key_lists
@pytest.mark.parametrize(
    ("original", "name", "num_experts", "behind"),
    [
        ("od_resnet18_k1", "resnet18", 1, ("fc.",)),
        ("od_resnet18_k4", "resnet18", 4, ("fc.",)),
        ("od_mobilenetv2_050_k4", "mobilenetv2_050", 4, ("classifier.", "features.18.")),
        ("od_mobilenetv2_075_k1", "mobilenetv2_075", 1, ("classifier.", "features.18.")),
    ],
)
def test_odconv_classifiers_by_their_key_lists(tmp_path, original, name, num_experts, behind):
    """Numbered tensors: each must be in its place."""
    keys = read("keys_odconv_nets.json")[original]
    marks = {
        key: torch.full(shape, float(i) if dtype == "float32" else i, dtype=getattr(torch, dtype))
        for i, (key, (shape, dtype)) in enumerate(keys.items())
    }
    path = foreign.save({f"module.{k}": v for k, v in marks.items()}, tmp_path / "x.pth")
    factory = functools.partial(ODConv2d, num_experts=num_experts)
    own = Backbone(name, path, conv=factory).network.state_dict()
    taken = {key: t for key, t in own.items() if not key.endswith("temperature")}
    expected = [t for key, t in marks.items() if not key.startswith(behind)]
    assert len(taken) == len(expected)
    for tensor, mark in zip(taken.values(), expected, strict=True):
        assert torch.equal(tensor, mark)


def test_the_backbone_of_odconvs_mask_rcnn(tmp_path, caplog):
    network = od_resnet18(num_experts=2)
    static = {f"backbone.{k}": v for k, v in network.state_dict().items()}
    static |= {"rpn_head.rpn_conv.weight": torch.zeros(1), "neck.x": torch.zeros(1)}
    path = foreign.save({"state_dict": static}, tmp_path / "x.pth")
    factory = functools.partial(ODConv2d, num_experts=2)
    with caplog.at_level("INFO"):
        backbone = Backbone("resnet18", path, conv=factory).eval()
    for key in ("rpn_head.rpn_conv.weight", "neck.x"):
        assert f"{key} left out: outside of the backbone" in caplog.text
    assert "fc.weight left out: the classifier" in caplog.text
    x = torch.rand(1, 3, 64, 64)
    maps = []
    network.layer4.register_forward_hook(lambda _, __, y: maps.append(y))
    with torch.no_grad():
        network.eval()(x)
        assert torch.equal(backbone(x)[-1], maps[0])
    with pytest.raises(ValueError, match="of dynamic layers; conv must say which"):
        Backbone("resnet18", path)
    with pytest.raises(ValueError, match=r"\(2, 64, 64, 3, 3\) in the file, \(4, 64, 64, 3, 3\)"):
        Backbone("resnet18", path, conv=functools.partial(ODConv2d, num_experts=4))


def test_torchvisions_mobilenet(tmp_path):
    network = mobilenet_v2().eval()
    path = foreign.save(network.state_dict(), tmp_path / "x.pth")
    backbone = Backbone("mobilenetv2_100", path).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone(x)[-1], network.features[:18](x))


@pytest.mark.parametrize("project", ["adelaidet", "mmdetection", "ours"])
def test_a_detectors_backbone(tmp_path, project):
    style = "caffe" if project == "adelaidet" else "torchvision"
    network = foreign.small_network(style)
    state = {f"network.{k}": v for k, v in network.state_dict().items()}
    if project != "ours":
        state = getattr(foreign, project)(network)
    path = foreign.save({"state_dict": state}, tmp_path / "x.pth")
    backbone = tiny_backbone(weights=path, style=style)
    states = (dict(b.state_dict()) for b in (backbone, network.backbone))
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_the_backbone_below_a_bifpn(tmp_path, caplog):
    """Deformable in every second block; the pyramid's first level is in the same module."""
    where = ["layer2.0.conv2", "layer3.1.conv2"]
    options = {"style": "caffe", "conv": DeformConv2d, "where": where}
    source = tiny_backbone(**options)
    for name in where:
        torch.nn.init.normal_(source.network.get_submodule(f"{name}.offset").weight)
    network = foreign.small_network(backbone=source, pyramid=BiFPN)
    state = foreign.adelaidet(network)
    path = foreign.save({"model": state}, tmp_path / "x.pth")
    with caplog.at_level("INFO"):
        backbone = tiny_backbone(weights=path, **options)
    assert "backbone.bottom_up.res6.reduction.weight left out: outside" in caplog.text
    states = (dict(b.state_dict()) for b in (backbone, source))
    torch.testing.assert_close(*states, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"conv must say which .* condseg.layers.DeformConv2d"):
        tiny_backbone(weights=path, style="caffe")


def test_the_backbone_of_rtmdet(tmp_path):
    state = checkpoint("tiny")
    path = foreign.save({"state_dict": state}, tmp_path / "x.pth")
    for content in (path, foreign.save({k: v for k, v in state.items() if "backbone" in k}, path)):
        backbone = Backbone("cspnext_tiny", content, norm="batch")
        for name, tensor in backbone.network.state_dict().items():
            assert torch.equal(tensor, state[f"backbone.{name}"]), name


def test_the_second_recipe_is_torchvisions():
    with pytest.raises(ValueError, match="are torchvision's; mobilenetv2_100 has imagenet"):
        Backbone("mobilenetv2_100", "imagenet_v2")
