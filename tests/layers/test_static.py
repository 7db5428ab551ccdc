"""Dynamic layers are replaced by static convolutions."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from condseg.layers import (
    CondConv2d,
    ConvSlot,
    DyConv2d,
    DynamicConv2d,
    DyNetConv2d,
    ODConv1d,
    ODConv2d,
    ODConv3d,
    to_dynamic,
    to_static,
)

timm = pytest.importorskip("timm")
LAYERS: dict[str, Any] = {
    "odconv1": functools.partial(ODConv2d, num_experts=1),
    "odconv4": ODConv2d,
    "dyconv": DyConv2d,
    "condconv": CondConv2d,
    "condconv3": functools.partial(CondConv2d, num_experts=3),
    "dynet": DyNetConv2d,
    "dfn": DynamicConv2d,
}
layers = pytest.mark.parametrize("layer", LAYERS)


def network(layer: str = "dyconv") -> nn.Sequential:
    torch.manual_seed(0)
    convs = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, (3, 1), groups=2, padding="same", padding_mode="reflect"),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, dilation=2, groups=6, bias=False),
    ).eval()
    to_dynamic(convs, LAYERS[layer], ["0", "3", "5"], copy=False)
    return convs


def images(number: int = 3) -> Tensor:
    return torch.randn(number, 3, 16, 18, generator=torch.Generator().manual_seed(1)) * 2 + 1


NETWORKS: dict[str, Any] = {
    "mobilenet_v2": functools.partial(torchvision.models.mobilenet_v2, width_mult=0.25),
    "resnet10t": functools.partial(timm.create_model, "resnet10t", features_only=True),
    "timm_lite0": functools.partial(timm.create_model, "tf_efficientnet_lite0", num_classes=5),
}


@pytest.mark.parametrize(
    ("layer", "name"),
    [("odconv4", "mobilenet_v2"), ("condconv", "resnet10t"), ("odconv1", "timm_lite0")],
)
def test_round_trip(layer: str, name: str) -> None:
    torch.manual_seed(0)
    build = NETWORKS[name]
    net = build().eval()
    x, state = torch.randn(1, 3, 33, 40), copy.deepcopy(net.state_dict())
    types = {name: type(module) for name, module in net.named_modules()}
    there = to_dynamic(net, LAYERS[layer])
    back = to_static(net)
    assert set(back.converted) == set(there.converted)
    assert back.kept == {}
    assert back.parameters == there.parameters[::-1]
    assert f"{len(there)} convolutions are static now, 0 kept" in str(back)
    same = {"Conv2dSame", "Conv2d"}  # timm's, where its stride is 1, comes back as nn.Conv2d
    for name, module in net.named_modules():
        assert type(module) is types[name] or {type(module).__name__, types[name].__name__} == same
    assert net.state_dict().keys() == state.keys()
    for key, value in net.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=1e-5, atol=1e-6)
    again = build().eval()
    again.load_state_dict(state)
    outputs = net(x), again(x)
    pairs = [outputs] if torch.is_tensor(outputs[0]) else zip(*outputs, strict=True)
    for a, b in pairs:
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


HEADS = {
    "odconv1": "attention",
    "odconv4": "attention",
    "dyconv": "attention.fc2",
    "condconv": "routing_fn",
    "condconv3": "routing_fn",
    "dynet": "coefficient_fn",
    "dfn": "generate",
}


@layers
def test_constant_attention_becomes_static(layer: str) -> None:
    net, x = network(layer), images()
    report = to_static(net)
    assert report.converted == ()
    assert report.kept == dict.fromkeys(
        ("0", "3", "5"), "its kernel or its bias depends on the input"
    )
    assert all(change > 1e-3 for change in report.change.values())
    for module in net[3].get_submodule(HEADS[layer]).modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.zeros_(module.weight)
    before = net(x)
    report = to_static(net)
    assert report.converted == ("3",)
    assert type(net[3]) is nn.Conv2d
    assert report.change["3"] < 1e-12
    torch.testing.assert_close(net(x), before, rtol=1e-5, atol=1e-5)


@layers
def test_fixed_at_one_image(layer: str) -> None:
    net, (one, other) = network(layer), images(2).split(1)
    dynamic = copy.deepcopy(net)
    report = to_static(net, [one])
    assert report.converted == ("0", "3", "5")
    assert not any(isinstance(m, ConvSlot) for m in net.modules())
    assert all(change < 1e-12 for change in report.change.values())
    torch.testing.assert_close(net(one), dynamic(one), rtol=1e-5, atol=1e-5)
    assert (net(other) - dynamic(other)).norm() > 1e-4 * dynamic(other).norm()


@layers
def test_fixed_at_the_mean_over_batches(layer: str) -> None:
    net, x = network(layer), images(5)
    dynamic, first = copy.deepcopy(net), net[0]
    report = to_static(net, (part for part in (x[:2], x[:0], x[2:])))
    kernels = torch.stack([first.kernel_and_bias(x[i : i + 1])[0][0] for i in range(5)])
    mean = kernels.mean(0)
    torch.testing.assert_close(net[0].weight, mean, rtol=1e-5, atol=1e-6)
    biases = first.kernel_and_bias(x)[1]
    changes = [(v - v.mean(0)).square().sum() / v.square().sum() for v in (kernels, biases)]
    assert report.change["0"] == pytest.approx(max(changes).item(), rel=1e-3)
    # Later layers read what the dynamic ones before them computed.
    kernels = [dynamic[3].kernel_and_bias(dynamic[:3](x[i : i + 1]))[0][0] for i in range(5)]
    torch.testing.assert_close(net[3].weight, sum(kernels) / 5, rtol=1e-5, atol=1e-6)


def test_a_bias_alone_may_depend_on_the_input() -> None:
    net = nn.Sequential(DyConv2d.from_static(nn.Conv2d(3, 4, 3)))
    net[0].bias.data[0] += 1
    nn.init.normal_(net[0].attention.fc2.weight)
    assert to_static(net).kept == {"0": "its kernel or its bias depends on the input"}
    nn.init.zeros_(net[0].bias)
    nn.init.zeros_(net[0].weight)
    assert to_static(net).change == {"0": 0.0}


def test_max_change() -> None:
    net = network("condconv")
    changes = to_static(copy.deepcopy(net), [images()]).change
    limit = sorted(changes.values())[1]
    report = to_static(net, [images()], max_change=limit)
    assert report.change == changes
    assert set(report.converted) == {name for name, c in changes.items() if c <= limit}
    assert list(report.kept.values()) == [f"its kernel varies by more than {limit}"]


def test_some_of_the_layers_by_name_and_by_predicate() -> None:
    net = network()
    report = to_static(net, [images()], "3")
    assert report.converted == ("3",)
    assert report.kept == {"0": "not selected", "5": "not selected"}
    report = to_static(net, [images()], lambda name, layer: layer.depthwise)
    assert report.converted == ("5",)
    with pytest.raises(ValueError, match=r"where='7' must be 'all' or a module"):
        to_static(net, [images()], "7")
    for wrong in (nn.Sequential(nn.Conv2d(3, 3, 1)), ODConv2d(3, 3, 1)):
        with pytest.raises(ValueError, match="must hold dynamic layers"):
            to_static(wrong)


class _Guided(nn.Module):
    """One layer guided by a second input, one that is not reached, one that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.guided = DynamicConv2d(3, 3, 1, guide_channels=2)
        self.idle = DyConv2d(3, 3, 1)
        self.a = self.b = DyConv2d(3, 3, 3, padding=1).requires_grad_(False)
        self.norm = nn.BatchNorm2d(3).eval()

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        y: Tensor = self.norm(self.b(self.a(self.guided(x, guide)) * 3))
        return y


def test_guided_unreached_and_shared_layers() -> None:
    torch.manual_seed(0)
    net, x = _Guided(), torch.randn(2, 3, 5, 5)
    assert to_static(net).kept["guided"] == "its kernel comes from a second input"
    report = to_static(net, [(x, torch.randn(2, 2))])
    assert report.converted == ("a", "b")
    assert report.kept == {
        "guided": "its kernel comes from a second input",
        "idle": "the batches do not reach it",
    }
    assert type(net.a) is nn.Conv2d
    assert net.a is net.b
    assert net.a.training
    assert not net.a.weight.requires_grad
    assert net.idle.training
    assert not net.norm.training
    assert net.norm.num_batches_tracked == 0
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_dtype_one_and_three_dimensions() -> None:
    torch.manual_seed(0)
    for cls, size in ((ODConv1d, (9,)), (ODConv3d, (3, 4, 5))):
        x = torch.randn(1, 4, *size).double()
        net = nn.Sequential(cls(4, 6, 2, stride=2, padding=1, num_experts=2)).double().eval()
        expected = net(x)
        to_static(net, [x])
        assert type(net[0]) is {3: nn.Conv1d, 5: nn.Conv3d}[x.dim()]
        torch.testing.assert_close(net(x), expected)


def test_padding_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(DyConv2d(3, 3, 3, stride=2, padding="tf_same"))
    monkeypatch.setattr("condseg.layers.slot.timm_same_conv", lambda: None)
    report = to_static(net, [images()])
    assert "padding='tf_same'" in report.kept["0"]
    layer = net[0]
    with pytest.raises(ValueError, match="needs timm"):
        layer.to_static(layer.weight[0])
    with pytest.raises(ValueError, match=r"kernel \(3, 3, 1, 1\)"):
        DyConv2d(3, 3, 3).to_static(torch.ones(3, 3, 1, 1))
