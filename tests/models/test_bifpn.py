"""BiFPN against the paper's graph, node by node."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from support.networks import tiny_condinst
from torch import Tensor, nn

from condseg.models import BiFPN

# Node -> level it lies on, nodes it reads; 0..4 are the inputs at levels 3..7.
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
    """Each pixel on its own: the nearest from above, the largest of 3 x 3 from below."""
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


def slow(pyramid: BiFPN, features: list[Tensor]) -> list[Tensor]:
    p6 = pyramid.p6(features[-1])
    p6 = resized(p6, (p6.shape[2] + 1) // 2, (p6.shape[3] + 1) // 2)
    maps = [*features, p6, resized(p6, (p6.shape[2] + 1) // 2, (p6.shape[3] + 1) // 2)]
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
    return [
        torch.randn(2, c, size[0] // stride, size[1] // stride)
        for c, stride in zip(channels, (8, 16, 32), strict=True)
    ]


@pytest.mark.parametrize("size", [(32, 32), (96, 160), (64, 32)])
@torch.no_grad()
def test_is_the_papers_graph(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    pyramid = BiFPN((8, 16, 12), 16, num_repeats=2).eval()
    assert isinstance(pyramid.blocks[0].lateral[1], nn.Identity)  # 16 channels already
    for block in pyramid.blocks:
        for weights in block.weights:
            weights.copy_(torch.randn_like(weights) + 0.5)
    maps = features(size, 8, 16, 12)
    got = pyramid(maps)
    assert [tuple(m.shape[1:]) for m in got[:3]] == [
        (16, size[0] // s, size[1] // s) for s in (8, 16, 32)
    ]
    for ours, theirs in zip(got, slow(pyramid, maps), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("low_precision", [False, True])
def test_every_part_trains_even_on_maps_of_one_pixel(low_precision: bool) -> None:
    pyramid = BiFPN((8, 16, 32), 16, num_repeats=2)
    maps = [x[:1] for x in features((32, 32), 8, 16, 32)]
    with torch.autocast("cpu", torch.bfloat16, enabled=low_precision):
        merged = pyramid(maps)
    torch.stack([F.mse_loss(m.float(), torch.ones(m.shape)) for m in merged]).sum().backward()
    for name, parameter in pyramid.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_network_with_a_bifpn() -> None:
    network = tiny_condinst(pyramid=partial(BiFPN, num_repeats=3)).eval()
    assert len(network.pyramid.blocks) == 3
    dense = network(torch.zeros(1, 3, 64, 96, dtype=torch.uint8), [(64, 96)])
    assert dense.head.level_sizes == ((8, 12), (4, 6), (2, 3), (1, 2), (1, 1))
    assert dense.mask_features.shape == (1, 8, 8, 12)


def test_without_a_repeat() -> None:
    with pytest.raises(ValueError, match="num_repeats is 0; 1 or more is allowed"):
        BiFPN((8, 16, 32), 64, 0)
