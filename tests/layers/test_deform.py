"""The deformable convolution against its equation; see also ``test_family.py``."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condseg.layers import DeformConv2d, to_dynamic, to_static
from condseg.models import Backbone
from tests.layers.test_family import build, images


def bilinear(plane: Tensor, y: float, x: float) -> Tensor:
    """Value between four pixels; zero outside."""
    height, width = plane.shape
    total = torch.zeros((), dtype=plane.dtype)
    for i in range(height):
        for j in range(width):
            total = total + max(0, 1 - abs(y - i)) * max(0, 1 - abs(x - j)) * plane[i, j]
    return total


@torch.no_grad()
def test_equation() -> None:
    layer, x = build("deform", "dilated_grouped").double(), images(1, (4, 5)).double()
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


@torch.no_grad()
def test_replaces_convolutions_of_a_network() -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"weights": None, "width": 8, "stem_width": 8, "style": "caffe"}
    network = Backbone("resnet50", **options).eval()
    x = torch.randn(1, 3, 64, 64)
    expected = network(x)
    to_dynamic(network.network, DeformConv2d, ["layer2.0.conv2", "layer3.3.conv2"])
    assert sum(isinstance(m, DeformConv2d) for m in network.modules()) == 2
    for ours, theirs in zip(network(x), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_is_never_static() -> None:
    network = nn.Sequential(build("deform"), nn.ReLU())
    for batches in (None, [images()]):
        assert to_static(network, batches).kept == {"0": "its taps depend on the position"}
    assert isinstance(network[0], DeformConv2d)
