"""BiFPN against the paper's graph, node by node."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condseg.models import BiFPN

# Level of nodes 5 to 12, and the nodes that each merges; 0 to 4 are the inputs at levels 3 to 7.
TOP_DOWN = (6, (3, 4)), (5, (2, 5)), (4, (1, 6)), (3, (0, 7))
BOTTOM_UP = (4, (1, 7, 8)), (5, (2, 6, 9)), (6, (3, 5, 10)), (7, (4, 11))


def resized(x: Tensor, height: int, width: int) -> Tensor:
    """Nearest pixel of a smaller map, max of 3 x 3 of a larger one."""
    h, w = x.shape[2:]
    larger, out = h > height or w > width, x.new_zeros(*x.shape[:2], height, width)
    for i, j in itertools.product(range(height), range(width)):
        rows, columns = (slice(max(2 * k - 1, 0), 2 * k + 2) for k in (i, j))
        nearest = x[..., i * h // height, j * w // width]
        out[..., i, j] = x[..., rows, columns].amax((2, 3)) if larger else nearest
    return out


def halved(x: Tensor) -> Tensor:
    return resized(x, (x.shape[2] + 1) // 2, (x.shape[3] + 1) // 2)


def slow(pyramid: BiFPN, features: list[Tensor]) -> list[Tensor]:
    p6 = halved(pyramid.p6(features[-1]))
    maps = [*features, p6, halved(p6)]
    for block in pyramid.blocks:
        nodes = [lateral(x) for lateral, x in zip(block.lateral, maps, strict=True)]
        for k, (level, inputs) in enumerate(TOP_DOWN + BOTTOM_UP):
            size = nodes[level - 3].shape[2:]
            weights = [max(w, 0.0) for w in block.weights[k].tolist()]
            total = sum(weights) + 0.0001
            x = sum(
                w / total * resized(nodes[i], *size) for w, i in zip(weights, inputs, strict=True)
            )
            nodes.append(block.output[k](x * torch.sigmoid(x)))
        maps = nodes[8:]
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
    with pytest.raises(ValueError, match="num_repeats is 0; 1 to 100 is allowed"):
        BiFPN((8, 16, 32), 64, 0)
