"""Convolutions of any network become dynamic, by the paper's rule or the user's."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import pytest
import torch
import torchvision
from torch import nn

from condseg.layers import (
    CondConv2d,
    ConvFactory,
    DyConv2d,
    DyConv3d,
    ODConv1d,
    ODConv2d,
    networks,
    to_dynamic,
)
from condseg.layers.networks import NETWORKS as NAMED
from condseg.layers.slot import ConvSlot

timm = pytest.importorskip("timm")
OD1: Any = functools.partial(ODConv2d, num_experts=1)

NETWORKS = {
    "torchvision_resnet18": lambda: torchvision.models.resnet18(num_classes=7),
    "torchvision_mobilenet_v2": lambda: torchvision.models.mobilenet_v2(num_classes=7),
    "timm_resnet18": lambda: timm.create_model("resnet18", num_classes=7),
    "timm_resnet18d": lambda: timm.create_model("resnet18d", features_only=True),
    "timm_lite0": lambda: timm.create_model("tf_efficientnet_lite0", features_only=True),
    "timm_efficientnet_se": lambda: timm.create_model("tf_efficientnet_b0", features_only=True),
}
KEPT = {
    "torchvision_resnet18": (16, {"stem": 1, "shortcut": 3}),
    "torchvision_mobilenet_v2": (51, {"stem": 1}),
    "timm_resnet18": (16, {"stem": 1, "shortcut": 3}),
    "timm_resnet18d": (16, {"stem": 3, "shortcut": 3}),
    "timm_lite0": (47, {"stem": 1}),
    "timm_efficientnet_se": (47, {"stem": 1, "attention on a pooled map": 32}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_paper_rule_and_static_start(name: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()
    x = torch.randn(2, 3, 45, 64)
    with torch.no_grad():
        before = network(x)
        conversion = to_dynamic(network, OD1)
        after = network(x)
    number, kept = KEPT[name]
    reasons = list(conversion.kept.values())
    assert len(conversion) == number
    assert {reason: reasons.count(reason) for reason in set(reasons)} == kept
    assert sum(isinstance(m, ODConv2d) for m in network.modules()) == number
    assert not any(m.training for m in network.modules())
    assert "are dynamic now" in str(conversion)
    assert conversion.parameters[1] == sum(p.numel() for p in network.parameters())
    before, after = ([y] if torch.is_tensor(y) else y for y in (before, after))
    for a, b in zip(after, before, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()
    with pytest.raises(ValueError, match="none of the"):
        to_dynamic(network, OD1)


def test_dyconv_is_in_the_shortcuts() -> None:
    conversion = to_dynamic(NETWORKS["torchvision_resnet18"](), DyConv2d)
    assert len(conversion) == 19
    assert conversion.kept == {"conv1": "stem"}


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("torchvision_resnet18", ("layer3.1", "layer4.0", "layer4.1")),
        ("torchvision_mobilenet_v2", ("features.15", "features.16", "features.17")),
        ("timm_lite0", ("blocks.5.2", "blocks.5.3", "blocks.6.0")),
    ],
)
def test_condconv_is_in_the_last_blocks(name: str, blocks: tuple[str, ...]) -> None:
    network = NETWORKS[name]()
    conversion = to_dynamic(network, CondConv2d)
    assert {n for n in conversion.converted if not n.startswith(blocks)} == set()
    assert all(any(n.startswith(b) for n in conversion.converted) for b in blocks)


def test_by_stage_and_by_predicate() -> None:
    by_stage = to_dynamic(NETWORKS["torchvision_resnet18"](), DyConv2d, ("layer3.0", "layer4"))
    assert len(by_stage) == 3 + 5
    assert all(n.startswith(("layer3.0.", "layer4.")) for n in by_stage.converted)
    by_predicate = to_dynamic(
        NETWORKS["torchvision_resnet18"](), DyConv2d, lambda name, conv: conv.stride == (2, 2)
    )
    assert by_predicate.converted[0] == "conv1"
    assert len(by_predicate) == 7
    with pytest.raises(ValueError, match=r"where='layer9'"):
        to_dynamic(NETWORKS["torchvision_resnet18"](), DyConv2d, "layer9")


def test_plain_stack_keeps_its_first_convolution() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1))
    assert to_dynamic(network, OD1).converted == ("2", "3")


def test_shared_and_frozen_convolutions() -> None:
    head = nn.Conv2d(4, 4, 3).requires_grad_(False)
    network = nn.ModuleDict({"stem": nn.Conv2d(3, 4, 3), "a": head, "b": head})
    assert to_dynamic(network, OD1).converted == ("a", "b")
    assert network["a"] is network["b"]
    assert not any(p.requires_grad for p in network["a"].parameters())


def test_subclasses_are_kept() -> None:
    class Standardised(nn.Conv2d):
        pass

    network = nn.Sequential(nn.Conv2d(3, 4, 3), Standardised(4, 4, 3), nn.Conv2d(4, 4, 3))
    conversion = to_dynamic(network, OD1)
    assert conversion.converted == ("2",)
    assert conversion.kept["1"] == "a Standardised computes something else"
    for wrong in (nn.Conv2d(3, 4, 3), nn.ReLU()):
        with pytest.raises(ValueError, match="must hold convolutions"):
            to_dynamic(wrong, OD1)


def test_any_factory() -> None:
    factories: list[ConvFactory] = [nn.Conv2d, ODConv2d, OD1]
    for factory in factories:
        network, x = NETWORKS["torchvision_resnet18"]().eval(), torch.randn(1, 3, 32, 32)
        before = network(x)
        to_dynamic(network, factory)
        torch.testing.assert_close(network(x), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(7, 8), (5, 6), (1, 2), (8, 8)])
@pytest.mark.parametrize("geometry", [(3, 2, 1), (5, 2, 1), (3, 1, 2), (2, 3, 1), (1, 2, 1)])
def test_tensorflow_padding(size: tuple[int, int], geometry: tuple[int, int, int]) -> None:
    k, stride, dilation = geometry
    conv = timm.layers.Conv2dSame(4, 6, k, stride=stride, dilation=dilation)
    x = torch.randn(2, 4, *size)
    for cls in (ODConv2d, DyConv2d, CondConv2d):
        torch.testing.assert_close(cls.from_static(conv)(x), conv(x), rtol=1e-5, atol=1e-5)


def test_converted_network_trains_at_batch_one() -> None:
    network = networks.od_mobilenetv2_050(num_classes=3)
    assert all(m.bias is None for m in network.modules() if isinstance(m, ConvSlot))
    features = network.features.train()
    for module in features.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    features(torch.randn(1, 3, 32, 32)).sum().backward()


# Millions of parameters: od_ as published; dy_ (4 experts) and cond_ (8) as in the ODConv paper,
# except CondConv's routings, one per block there and one per layer here.
MILLIONS = {
    "od_resnet18": 11.94,
    "dy_resnet18": 45.47,
    "cond_resnet18": 81.35,
    "dy_resnet50": 100.88,
    "cond_resnet50": 129.86,
    "dy_mobilenetv2_050": 4.57,
    "dy_mobilenetv2_100": 12.40,
    "cond_mobilenetv2_100": 22.88,
}


@pytest.mark.parametrize("name", MILLIONS)
def test_size_of_named_networks(name: str) -> None:
    with torch.device("meta"):
        network = getattr(networks, name)()
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    assert millions == pytest.approx(MILLIONS[name], rel=0.004)


def test_named_networks() -> None:
    assert len(NAMED) == 21
    for name in ("dy_mobilenetv2_050", "cond_mobilenetv2_050", "cond_resnet18"):
        network = getattr(networks, name)(num_classes=3, num_experts=2).eval()
        assert network(torch.randn(2, 3, 32, 32)).shape == (2, 3)
        slots = [m for m in network.modules() if isinstance(m, ConvSlot)]
        assert all(m.num_experts == 2 for m in slots)
    with pytest.raises(ValueError, match="name='od_vgg'"):
        networks.dynamic_network("od_vgg")
    with pytest.raises(AttributeError, match="od_vgg"):
        networks.od_vgg  # noqa: B018


def test_one_and_three_dimensions() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.Conv1d(4, 4, 3))
            self.two, self.three = nn.Conv2d(3, 4, 3), nn.Conv3d(3, 4, 3)

    network, x = Mixed(), torch.randn(2, 3, 9)
    expected = network.one(x)
    report = to_dynamic(network, functools.partial(ODConv1d, num_experts=2), ["one", "two"])
    assert report.converted == ("one.0", "one.2")
    assert report.kept == {"two": "it is not 1-D", "three": "it is not 1-D"}
    torch.testing.assert_close(network.one(x), expected, rtol=1e-5, atol=1e-5)
    assert to_dynamic(network, DyConv3d, "three").converted == ("three",)


def test_layers_of_a_factory_are_connected_once() -> None:
    class Factory:
        connected: ClassVar[list[dict[str, nn.Module]]] = []

        def __call__(self, *args: Any, **kwargs: Any) -> nn.Module:
            return ODConv2d(*args, **kwargs)

        def connect(self, layers: dict[str, nn.Module]) -> None:
            self.connected.append(layers)

    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(4, 4, 3)))
    to_dynamic(network, Factory(), ["0", "1"])
    assert Factory.connected == [{"0": network[0], "1.0": network[1][0]}]
