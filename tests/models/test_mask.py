"""The mask head, the mask branch and the depth encoder."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from studies.published import published_form
from support.networks import RTMDET, SIZE, noise, tiny_condinst
from torch import Tensor, nn

from condseg.layers import DynamicDilatedPyramid2d
from condseg.models import (
    ConcatMaskBranch,
    DepthEncoder,
    DynamicMaskHead,
    MaskBranch,
    RTMDetMaskHead,
)
from condseg.models.mask.depth import normalized_depth
from condseg.structures import MaskQueries


@settings(deadline=None, max_examples=25)
@given(
    layers=st.integers(1, 4),
    channels=st.integers(1, 9),
    features=st.integers(1, 9),
    relative=st.booleans(),
    count=st.integers(1, 6),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
def test_mask_head_is_a_small_network_of_each_instance(
    layers: int, channels: int, features: int, relative: bool, count: int, size: tuple[int, int]
) -> None:
    maps = torch.randn(2, features, *size)
    head = DynamicMaskHead(features, channels, layers, relative)
    params = torch.randn(count, head.num_params)
    queries = queries_of(params, 40, torch.randint(0, 2, (count,)))
    masks = head(maps, queries)
    torch.testing.assert_close(masks, published_form(head)(maps, queries), rtol=1e-4, atol=1e-4)

    weights, biases = head.parse(queries.params)
    p, (i, j) = count - 1, (size[0] - 1, size[1] - 1)
    x = maps[queries.image_index[p], :, i, j]
    if relative:
        pixel = torch.tensor([8.0 * j + 4, 8.0 * i + 4])
        x = torch.cat(((queries.points[p] - pixel) / 64, x))
    for layer in range(layers):
        x = weights[layer][p] @ (x.relu() if layer else x) + biases[layer][p]
    torch.testing.assert_close(masks[p, 2 * i + 1, 2 * j + 1], x[0], rtol=1e-4, atol=1e-4)


def test_params_are_parsed_into_weights_and_biases() -> None:
    head = DynamicMaskHead()
    assert head.num_params == 169
    weights, biases = head.parse(torch.randn(5, 169))
    assert [w.shape for w in weights] == [(5, 8, 10), (5, 8, 8), (5, 1, 8)]
    assert [b.shape for b in biases] == [(5, 8), (5, 8), (5, 1)]


def queries_of(params: Tensor, extent: float, image_index: Tensor) -> MaskQueries:
    count = len(params)
    points, sizes = torch.rand(count, 2) * extent, torch.full((count,), 64.0)
    return MaskQueries(params, points, sizes, image_index)


def test_masks_in_half_precision_are_finite() -> None:
    params = torch.randn(2000, 169).bfloat16() * 100
    queries = queries_of(params, 4000, torch.zeros(2000, dtype=torch.int64))
    with torch.autocast("cpu", torch.float16), torch.no_grad():
        masks = DynamicMaskHead()(torch.randn(1, 8, 3, 4).half() * 100, queries)
    assert masks.isfinite().all()


@pytest.mark.parametrize("options", [{"num_layers": 0}, {"out_stride": 3}])
def test_options_that_the_mask_head_does_not_support(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        DynamicMaskHead(**options)


def test_mask_branch_without_norm_and_with_filter() -> None:
    maps = [torch.randn(1, 6, s, s) for s in (8, 4, 2)]
    plain = MaskBranch(6, 8, 1, 5, norm=None)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in plain.modules())
    assert plain(maps).shape == (1, 5, 8, 8)
    assert MaskBranch(6, 8, 1, 5, mask_filter=DynamicDilatedPyramid2d)(maps).shape == (1, 5, 8, 8)


def test_levels_are_concatenated() -> None:
    maps = [torch.randn(2, 6, 2 * s, 3 * s) for s in (4, 2, 1)]
    branch = ConcatMaskBranch(6, 8, 1, 5).eval()
    up = [nn.Upsample(size=(8, 12), mode="bilinear")(x) for x in maps]
    x = torch.einsum("oi,bihw->bohw", branch.refine.weight[..., 0, 0], torch.cat(up, 1))
    x = x + branch.refine.bias[:, None, None]
    assert [type(layer) for layer in branch.tower[0]][1:] == [nn.BatchNorm2d, nn.SiLU]
    torch.testing.assert_close(branch(maps), branch.tower(x))
    guided = ConcatMaskBranch(6, 8, 1, 5, mask_filter=DynamicDilatedPyramid2d)
    assert guided(maps).shape == (2, 5, 8, 12)


@pytest.mark.parametrize("count", [0, 3])
def test_rtmdet_upsamples_in_training_alone(count: int) -> None:
    head, maps = RTMDetMaskHead().train(), torch.randn(1, 8, 4, 5)
    queries = queries_of(torch.randn(count, 169), 40, torch.zeros(count, dtype=torch.int64))
    small = DynamicMaskHead(out_stride=8)(maps, queries)
    torch.testing.assert_close(head.eval()(maps, queries), small)
    large = head.train()(maps, queries)
    assert large.shape == (count, 8, 10)
    expected = nn.Upsample(scale_factor=2, mode="bilinear")(small[:, None])[:, 0]
    torch.testing.assert_close(large, expected)


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_masks_are_relative_to_the_locations(
    offset: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mask = f((q - x) / 8 s, ...) with q, x both corners or both centers of cells."""
    network = tiny_condinst(**RTMDET).eval()
    monkeypatch.setattr(network.head, "location_offset", offset)
    with torch.no_grad():
        dense = network(noise(1), [SIZE])
    index = torch.tensor([0, 13, 12 * 8 + 7, 12 * 8 + 6 * 4 + 4])
    queries = network.queries(dense, torch.zeros_like(index), index)
    stride = dense.locations.stride[index]
    cells = torch.tensor([[0, 0], [1, 1], [1, 1], [1, 1]])
    expected = cells * stride[:, None] + (stride[:, None] - 8) * offset + 4
    assert torch.equal(queries.points, expected)


def depth_maps(seed: int = 0) -> Tensor:
    """A plane with a step, and an unmeasured rectangle."""
    depth = 800 + 400 * torch.rand(2, *SIZE, generator=torch.Generator().manual_seed(seed))
    depth[:, 20:40, 30:60] -= 300
    depth[:, 5:9, 5:9] = 0
    return depth


def test_normalized_depth_by_hand() -> None:
    q = [1.0, 0.5, 0.25, 0.125, 0.5]
    spread = sum(abs(v - 0.5) for v in q) / 5
    expected = torch.tensor([0.5, 0.0, -0.25, 0.0, -0.375, 0.0]) / spread
    x, measured = normalized_depth(torch.tensor([[[1.0, 2.0, 4.0], [0.0, 8.0, 2.0]]]))[0]
    torch.testing.assert_close(x.flatten(), expected)
    assert measured.flatten().tolist() == [1, 1, 1, 0, 1, 1]


def test_unit_padding_and_other_images_do_not_matter() -> None:
    depth = depth_maps()
    expected = normalized_depth(depth)
    torch.testing.assert_close(normalized_depth(depth / 1000), expected)
    padded = nn.functional.pad(depth, (0, 32, 0, 64))
    torch.testing.assert_close(normalized_depth(padded)[..., : SIZE[0], : SIZE[1]], expected)
    torch.testing.assert_close(normalized_depth(depth[:1]), expected[:1])


@pytest.mark.parametrize("value", [0.0, 700.0])
def test_unmeasured_and_constant_depth(value: float) -> None:
    x, measured = normalized_depth(torch.full((1, 32, 32), value))[0]
    assert (x == 0).all()
    assert (measured == (value > 0)).all()
    assert DepthEncoder(3)(torch.full((2, 32, 64), value)).isfinite().all()


with_depth = partial(tiny_condinst, mask_filter=DynamicDilatedPyramid2d, depth_channels=4)


def test_depth_guides_the_mask_filter_alone() -> None:
    assert DepthEncoder(12)(depth_maps()).shape == (2, 12, 8, 12)
    network, images = with_depth(), noise(2)
    network(images, [SIZE] * 2, depth_maps()).mask_features.square().sum().backward()
    assert network.depth_encoder is not None
    assert all(p.grad is not None and p.grad.any() for p in network.depth_encoder.parameters())
    network.eval()
    with torch.no_grad():
        first, other = (network(images, [SIZE] * 2, depth_maps(seed)) for seed in (0, 1))
    assert not torch.equal(first.mask_features, other.mask_features)
    assert torch.equal(first.head.class_logits, other.head.class_logits)
    branches = [m for n, m in network.mask_branch.filter.named_children() if "branch" in n]
    assert {branch.generate_kernel[0].in_channels for branch in branches} == {4}


def test_depth_that_is_missing_or_not_taken() -> None:
    images = noise(2)
    with pytest.raises(ValueError, match=r"takes depth .*the batch has none"):
        with_depth()(images, [SIZE] * 2)
    plain = tiny_condinst()
    assert not plain.takes_depth
    with pytest.raises(ValueError, match="the network takes none"):
        plain(images, [SIZE] * 2, depth_maps())
    with pytest.raises(ValueError, match="depth_channels is 4, but there is no mask_filter"):
        with_depth(mask_filter=None)
    with pytest.raises(ValueError, match="depth_channels is 0"):
        with_depth(depth_channels=0)
