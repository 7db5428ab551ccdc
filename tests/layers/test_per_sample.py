"""Convolution per sample and local filtering against loops, for random shapes and options."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from condseg.layers import (
    CondConv1d,
    CondConv3d,
    DyConv1d,
    DyConv3d,
    DynamicConv1d,
    DynamicConv3d,
    DynamicLocalFilter2d,
    DyNetConv1d,
    DyNetConv3d,
    ODConv1d,
    ODConv3d,
)
from condseg.layers.dfn import dynamic_local_filter
from condseg.layers.local_filter import filter_locally
from condseg.layers.per_sample import conv_experts, conv_per_sample, mix


def slow_conv_per_sample(x: Tensor, weight: Tensor, bias: Tensor | None, **where: Any) -> Tensor:
    rows = [
        F.conv2d(x[i : i + 1], weight[i], None if bias is None else bias[i], **where)
        for i in range(len(x))
    ]
    return torch.cat(rows)


def slow_filter_locally(
    x: Tensor, filters: Tensor, kernel_size: tuple[int, int], dilation: int
) -> Tensor:
    """filters (B, C, T, H, W), pixel by pixel."""
    (kh, kw), y = kernel_size, torch.zeros_like(x)
    batch, channels, height, width = x.shape
    for b in range(batch):
        for c in range(channels):
            for i in range(height):
                for j in range(width):
                    for t in range(kh * kw):
                        p = i + dilation * (t // kw - kh // 2)
                        q = j + dilation * (t % kw - kw // 2)
                        if 0 <= p < height and 0 <= q < width:
                            y[b, c, i, j] += filters[b, c, t, i, j] * x[b, c, p, q]
    return y


few = settings(max_examples=30, deadline=None, derandomize=True)
pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
places = st.fixed_dictionaries(
    {
        "stride": pair,
        "padding": st.tuples(st.integers(0, 2), st.integers(0, 2)),
        "dilation": pair,
        "groups": st.integers(1, 3),
    }
)


@few
@given(st.integers(1, 3), st.integers(1, 2), st.integers(1, 2), pair, places, st.booleans())
def test_conv_per_sample(
    batch: int, per_in: int, per_out: int, k: tuple[int, int], place: dict[str, Any], biased: bool
) -> None:
    torch.manual_seed(0)
    g = place["groups"]
    x = torch.randn(batch, per_in * g, 8, 7).double()
    weight = torch.randn(batch, per_out * g, per_in, *k).double()
    bias = torch.randn(batch, per_out * g).double() if biased else None
    torch.testing.assert_close(
        conv_per_sample(x, weight, bias, **place), slow_conv_per_sample(x, weight, bias, **place)
    )


@few
@given(st.integers(1, 3), st.integers(1, 3), places)
def test_mixing_kernels_is_mixing_maps(batch: int, experts: int, place: dict[str, Any]) -> None:
    torch.manual_seed(0)
    g = place["groups"]
    x = torch.randn(batch, 2 * g, 8, 7).double()
    weight = torch.randn(experts, 3 * g, 2, 2, 3).double()
    shares = torch.rand(batch, experts, 3 * g).double()
    maps = conv_experts(x, weight, **place)
    mixed = (maps * shares[..., None, None]).sum(1)
    torch.testing.assert_close(mixed, conv_per_sample(x, mix(shares, weight), None, **place))
    same = shares[..., :1].expand_as(shares)
    torch.testing.assert_close(mix(same, weight), mix(shares[..., 0], weight))


@few
@given(
    st.integers(1, 2),
    st.sampled_from([(1, 1), (3, 3), (1, 3), (5, 3)]),
    st.integers(1, 3),
    st.booleans(),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_filter_locally(
    channels: int, k: tuple[int, int], dilation: int, shared: bool, size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, channels, *size).double()
    filters = torch.randn(2, 1 if shared else channels, k[0] * k[1], *size).double()
    expected = slow_filter_locally(x, filters.expand(-1, channels, -1, -1, -1), k, dilation)
    torch.testing.assert_close(filter_locally(x, filters, k, dilation), expected)
    mode = "shared" if shared else "perchannel"
    y = dynamic_local_filter(x, filters.flatten(1, 2), k, mode, dilation)
    torch.testing.assert_close(y, expected)
    if not shared:
        joint = dynamic_local_filter(x, filters.flatten(1, 2), k, "joint", dilation)
        torch.testing.assert_close(joint, expected.sum(1, keepdim=True))


def test_one_and_three_dimensions() -> None:
    torch.manual_seed(0)
    for one, three in (
        (ODConv1d, ODConv3d),
        (DyConv1d, DyConv3d),
        (CondConv1d, CondConv3d),
        (DyNetConv1d, DyNetConv3d),
        (DynamicConv1d, DynamicConv3d),
    ):
        conv1 = torch.nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2)
        conv3 = torch.nn.Conv3d(4, 6, (1, 3, 2), padding=(0, 1, 1), bias=False)
        x1, x3 = torch.randn(2, 4, 9), torch.randn(2, 4, 3, 5, 4)
        torch.testing.assert_close(one.from_static(conv1)(x1), conv1(x1), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(three.from_static(conv3)(x3), conv3(x3), rtol=1e-5, atol=1e-5)
        torch.manual_seed(1)
        flat = one(4, 6, 3, padding=1).eval()
        torch.manual_seed(1)
        deep = three(4, 6, (3, 1, 1), padding=(1, 0, 0)).eval()
        deep.load_state_dict(
            {k: v.reshape(deep.state_dict()[k].shape) for k, v in flat.state_dict().items()}
        )
        x = torch.randn(2, 4, 9)
        torch.testing.assert_close(
            deep(x[..., None, None])[..., 0, 0], flat(x), rtol=1e-5, atol=1e-5
        )


def test_local_filter_of_one_tap_is_a_product() -> None:
    x, guide = torch.randn(2, 3, 6, 5), torch.randn(2, 2, 3, 3)
    layer = DynamicLocalFilter2d(3, 2, kernel_size=1, softmax=False)
    resized = F.interpolate(guide, (6, 5), mode="bilinear")
    torch.testing.assert_close(layer(x, guide), x * layer.filters(resized))
