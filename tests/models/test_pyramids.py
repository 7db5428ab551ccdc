"""BiFPN against the paper's graph, node by node."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condseg.models import BiFPN

# Node -> its level and the nodes that it merges; 0..4 are the inputs at levels 3..7.
GRAPH = {
    5: (6, (3, 4)),
    6: (5, (2, 5)),
    7: (4, (1, 6)),
    8: (3, (0, 7)),
    9: (4, (1, 7, 8)),
    10: (5, (2, 6, 9)),
    11: (6, (3, 5, 10)),
    12: (7, (4, 11)),
}
OUTPUTS = (8, 9, 10, 11, 12)


def resized(x: Tensor, height: int, width: int) -> Tensor:
    """Nearest pixel of a smaller map, max of 3 x 3 of a larger one."""
    n, c, h, w = x.shape
    out = x.new_zeros(n, c, height, width)
    for i in range(height):
        for j in range(width):
            if (h, w) == (height, width):
                out[..., i, j] = x[..., i, j]
            elif h > height or w > width:
                rows = slice(max(2 * i - 1, 0), 2 * i + 2)
                columns = slice(max(2 * j - 1, 0), 2 * j + 2)
                out[..., i, j] = x[..., rows, columns].amax((2, 3))
            else:
                out[..., i, j] = x[..., i * h // height, j * w // width]
    return out


def halved(x: Tensor) -> Tensor:
    return resized(x, (x.shape[2] + 1) // 2, (x.shape[3] + 1) // 2)


def slow(pyramid: BiFPN, features: list[Tensor]) -> list[Tensor]:
    p6 = halved(pyramid.p6(features[-1]))
    maps = [*features, p6, halved(p6)]
    for block in pyramid.blocks:
        nodes = [lateral(x) for lateral, x in zip(block.lateral, maps, strict=True)]
        for k, (level, inputs) in enumerate(GRAPH.values()):
            size = nodes[level - 3].shape[2:]
            weights = [max(w, 0.0) for w in block.weights[k].tolist()]
            total = sum(weights) + 0.0001
            x = sum(
                w / total * resized(nodes[i], *size) for w, i in zip(weights, inputs, strict=True)
            )
            nodes.append(block.output[k](x * torch.sigmoid(x)))
        maps = [nodes[i] for i in OUTPUTS]
    return maps


def features(size: tuple[int, int], *channels: int) -> list[Tensor]:
    torch.manual_seed(0)
    return [
        torch.randn(2, c, size[0] // stride, size[1] // stride)
        for c, stride in zip(channels, (8, 16, 32), strict=True)
    ]


@pytest.mark.parametrize("size", [(32, 32), (96, 160), (64, 32)])
@torch.no_grad()
def test_bifpn_equals_the_graph(size: tuple[int, int]) -> None:
    maps = features(size, 8, 16, 12)
    pyramid = BiFPN((8, 16, 12), 16, num_repeats=2).eval()
    assert isinstance(pyramid.blocks[0].lateral[1], nn.Identity)  # 16 channels already
    for block in pyramid.blocks:
        for weights in block.weights:
            weights.copy_(torch.randn_like(weights) + 0.5)
    merged = pyramid(maps)
    expected = [(2, 16, size[0] // s, size[1] // s) for s in (8, 16, 32)]
    assert [x.shape for x in merged[:3]] == expected
    torch.testing.assert_close(merged, slow(pyramid, maps), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_on_maps_of_one_pixel(autocast: bool) -> None:
    pyramid = BiFPN((8, 16, 32), 16, num_repeats=2)
    maps = [x[:1] for x in features((32, 32), 8, 16, 32)]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        merged = pyramid(maps)
    torch.stack([F.mse_loss(x.float(), torch.ones(x.shape)) for x in merged]).sum().backward()
    for name, parameter in pyramid.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_bifpn_without_a_repeat() -> None:
    with pytest.raises(ValueError, match="num_repeats is 0; 1 or more is allowed"):
        BiFPN((8, 16, 32), 64, 0)
