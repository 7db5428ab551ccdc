"""Fast and published forms have equal outputs and gradients; see also ``test_family.py``."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from studies.published import PUBLISHED, published_form
from torch import Tensor, nn

from condseg.layers import (
    DynamicContextFilter2d,
    DynamicDilatedFilter2d,
    DynamicLocalFilter2d,
    ODConv1d,
    ODConv2d,
)
from condseg.layers.winograd import Conv3x3

LAYERS = {
    "odconv_1d": partial(ODConv1d, 4, 6, 3),
    "dfn_perchannel": partial(DynamicLocalFilter2d, 4, 4, kernel_size=3, mode="perchannel"),
    "dfn_shared": partial(DynamicLocalFilter2d, 4, 4, 6, kernel_size=5, dilation=2),
    "dfn_joint": partial(DynamicLocalFilter2d, 4, 4, 1, kernel_size=3, mode="joint"),
    "dmnet": partial(DynamicContextFilter2d, 4, 4, 3),
    "hdfnet": partial(DynamicDilatedFilter2d, 4, 4, 5, kernel_size=5, dilation=3),
    "conv3x3": partial(Conv3x3, 4, 6),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("batch", [1, 3])
def test_output_and_gradients(name: str, batch: int) -> None:
    torch.manual_seed(0)
    fast = LAYERS[name]().double()
    published = published_form(fast)
    assert type(published) is not type(fast)
    shape = (batch, 4, 7) if name == "odconv_1d" else (batch, 4, 7, 6)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    guided = isinstance(fast, (DynamicLocalFilter2d, DynamicDilatedFilter2d))
    results = []
    for layer in (fast, published):
        y: Tensor = layer(x, x) if guided else layer(x)
        cotangent = torch.sin(torch.arange(y.numel(), dtype=y.dtype)).view_as(y)
        results.append((y, *torch.autograd.grad(y, [x, *layer.parameters()], cotangent)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_network_shares_nothing_with_its_published_form() -> None:
    conv = Conv3x3(4, 4)
    network = nn.Sequential(conv, nn.Sequential(ODConv2d(4, 4, 3), conv))
    published = published_form(network)
    assert published[0] is published[1][1]
    assert not {type(m) for m in published.modules()} & set(PUBLISHED)
    assert type(network[0]) is Conv3x3
    assert not {p.data_ptr() for p in network.parameters()} & {
        p.data_ptr() for p in published.parameters()
    }
    assert published.state_dict().keys() == network.state_dict().keys()
