"""The deformable convolution against its equation, and in nn.Conv2d's place."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condseg.layers import DeformConv2d, to_dynamic, to_static
from condseg.models import Backbone
from tests.layers.test_family import GEOMETRIES, picture, place

geometries = pytest.mark.parametrize("geometry", GEOMETRIES)


def build(geometry: str = "3x3") -> DeformConv2d:
    """With offsets and modulations that differ from place to place."""
    torch.manual_seed(0)
    layer = DeformConv2d(**place(geometry))
    for parameter in layer.offset.parameters():
        nn.init.normal_(parameter, std=0.3)
    return layer


def bilinear(plane: Tensor, y: float, x: float) -> Tensor:
    """Value between four pixels; zero outside."""
    height, width = plane.shape
    total = torch.zeros((), dtype=plane.dtype)
    for i in range(height):
        for j in range(width):
            total = total + max(0, 1 - abs(y - i)) * max(0, 1 - abs(x - j)) * plane[i, j]
    return total


@torch.no_grad()
def test_is_the_papers_equation() -> None:
    layer, x = build("dilated_grouped").double(), picture(1, (4, 5)).double()
    got, conv = layer(x)[0], layer.offset
    moved = F.conv2d(x, conv.weight, conv.bias, padding=2, dilation=2)[0]
    for i, j in ((0, 0), (1, 3), (3, 4)):
        for out in (0, 5):
            channels = range(2) if out < 3 else range(2, 4)
            expected = layer.bias[out].clone()
            for k in range(9):
                y = i + 2 * (k // 3 - 1) + moved[2 * k, i, j].item()
                z = j + 2 * (k % 3 - 1) + moved[2 * k + 1, i, j].item()
                for n, c in enumerate(channels):
                    tap = layer.weight[out, n, k // 3, k % 3] * moved[18 + k, i, j].sigmoid()
                    expected += tap * bilinear(x[0, c], y, z)
            torch.testing.assert_close(got[out, i, j], expected)


@geometries
def test_starts_as_the_static_convolution(geometry: str) -> None:
    torch.manual_seed(0)
    conv, x = nn.Conv2d(**place(geometry)), picture() * 3
    layer = DeformConv2d.from_static(conv)
    torch.testing.assert_close(layer(x), conv(x), rtol=1e-5, atol=1e-5)
    layer(x).square().sum().backward()
    assert layer.offset.weight.grad is not None
    assert layer.offset.weight.grad.any()


@geometries
def test_low_precision_one_sample_alone_and_none(geometry: str) -> None:
    layer, x = build(geometry).eval(), picture().requires_grad_()
    expected = layer(x)
    for i in range(len(x)):
        torch.testing.assert_close(layer(x[i : i + 1])[0], expected[i], rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert (y - expected).norm() < 0.02 * expected.norm()
    y.float().sum().backward()
    if geometry not in ("reflect", "circular"):  # nn.Conv2d itself refuses these
        assert layer(x[:0]).shape == (0, *expected.shape[1:])


def test_gradcheck() -> None:
    layer, x = build("3x3").double(), picture(1, (4, 3)).double().requires_grad_()
    names, values = zip(*layer.named_parameters(), strict=True)

    def function(x: Tensor, *parameters: Tensor) -> Tensor:
        state = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(layer, state, (x,))

    torch.autograd.gradcheck(function, (x, *values), fast_mode=True)


def test_state_and_copies() -> None:
    layer, x = build(), picture()
    other = DeformConv2d(**place("3x3"))
    other.load_state_dict(layer.state_dict(), strict=True)
    for twin in (other, copy.deepcopy(layer)):
        assert torch.equal(twin(x), layer(x))
    assert set(layer.state_dict()) == {"weight", "bias", "offset.weight", "offset.bias"}


def test_refuses_another_shape() -> None:
    with pytest.raises(ValueError, match="kernel"):
        build().copy_static_(nn.Conv2d(4, 6, 5))


@torch.no_grad()
def test_in_a_network_it_computes_what_was_there() -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"weights": None, "width": 8, "stem_width": 8, "style": "caffe"}
    network = Backbone("resnet50", **options).eval()
    x = torch.randn(1, 3, 64, 64)
    expected = network(x)
    to_dynamic(network.network, DeformConv2d, ["layer2.0.conv2", "layer3.3.conv2"])
    assert sum(isinstance(m, DeformConv2d) for m in network.modules()) == 2
    for ours, theirs in zip(network(x), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_no_kernel_stands_for_it() -> None:
    network = nn.Sequential(build(), nn.ReLU())
    for batches in (None, [picture()]):
        assert to_static(network, batches).kept == {"0": "its taps depend on the position"}
    assert isinstance(network[0], DeformConv2d)
