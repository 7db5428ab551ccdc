"""The depth encoder, and the network that takes depth."""

import pytest
import torch
from support.networks import tiny_condinst
from torch import Tensor, nn

from condseg.layers import DynamicDilatedPyramid2d
from condseg.models import CondInst
from condseg.models.mask.depth import DepthEncoder, normalized_depth

SIZES = [(64, 96), (64, 96)]


def scene(seed: int = 0) -> Tensor:
    """A plane with a step, and a hole in the measurement."""
    depth = 800 + 400 * torch.rand(2, 64, 96, generator=torch.Generator().manual_seed(seed))
    depth[:, 20:40, 30:60] -= 300
    depth[:, 5:9, 5:9] = 0
    return depth


def network(**options: object) -> CondInst:
    return tiny_condinst(**{"mask_filter": DynamicDilatedPyramid2d, "depth_channels": 4} | options)


def test_normalized_depth_is_the_rule_read_aloud() -> None:
    values = torch.tensor([[[1.0, 2.0, 4.0], [0.0, 8.0, 2.0]]])
    q = [1.0, 0.5, 0.25, 0.125, 0.5]
    spread = sum(abs(v - 0.5) for v in q) / 5
    expected = [0.5, 0.0, -0.25, 0.0, -0.375, 0.0]
    found = normalized_depth(values)
    torch.testing.assert_close(found[0, 0].flatten(), torch.tensor(expected) / spread)
    assert found[0, 1].flatten().tolist() == [1, 1, 1, 0, 1, 1]


def test_neither_unit_nor_padding_counts() -> None:
    depth = scene()
    found = normalized_depth(depth)
    torch.testing.assert_close(normalized_depth(depth / 1000), found)
    padded = nn.functional.pad(depth, (0, 32, 0, 64))
    torch.testing.assert_close(normalized_depth(padded)[..., :64, :96], found)
    torch.testing.assert_close(normalized_depth(depth[:1]), found[:1])


@pytest.mark.parametrize("value", [0.0, 700.0])
def test_nothing_measured_and_flat_scenes_are_normal(value: float) -> None:
    found = normalized_depth(torch.full((1, 32, 32), value))
    assert (found[:, 0] == 0).all()
    assert (found[:, 1] == (value > 0)).all()
    assert DepthEncoder(3)(torch.full((2, 32, 64), value)).isfinite().all()


def test_features_are_at_stride_8() -> None:
    assert DepthEncoder(12)(scene()).shape == (2, 12, 8, 12)


def test_depth_makes_the_kernels_and_the_encoder_learns() -> None:
    model = network()
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    dense = model(images, SIZES, scene())
    dense.mask_features.square().sum().backward()
    assert model.depth_encoder is not None
    assert all(p.grad is not None and p.grad.any() for p in model.depth_encoder.parameters())
    model.eval()
    with torch.no_grad():
        first, other = (model(images, SIZES, scene(seed)) for seed in (0, 1))
    assert not torch.equal(first.mask_features, other.mask_features)
    torch.testing.assert_close(first.head.class_logits, other.head.class_logits, rtol=0, atol=0)
    sizes = {c.generate_kernel[0].in_channels for n, c in model.mask_branch.filter.named_children()
             if n.startswith("branch")}  # fmt: skip
    assert sizes == {4}


def test_depth_where_none_is_taken_and_the_other_way_round() -> None:
    images = torch.zeros(2, 3, 64, 96, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"takes depth .*the batch has none"):
        network()(images, SIZES)
    plain = network(depth_channels=None)
    assert not plain.takes_depth
    with pytest.raises(ValueError, match="the network takes none"):
        plain(images, SIZES, scene())
    with pytest.raises(ValueError, match="depth_channels is 4, but there is no mask_filter"):
        network(mask_filter=None)
    with pytest.raises(ValueError, match="depth_channels is 0"):
        network(depth_channels=0)
