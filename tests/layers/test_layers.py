"""Properties of single layers; those of all layers are in ``test_family.py``."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from condseg.layers import (
    CondConv2d,
    DyConv2d,
    DynamicContextFilter2d,
    DynamicConv2d,
    DynamicDilatedPyramid2d,
    DynamicLocalFilter2d,
    DynamicMultiScaleFilter2d,
    DyNetConv2d,
    ODConv2d,
    hybrid_enhanced_loss,
    lower_temperature,
    set_temperature,
)


def test_squeeze_and_excitation_is_odconv_with_filter_attention() -> None:
    torch.manual_seed(0)
    layer = ODConv2d(8, 12, 1, bias=False, num_experts=1, norm="none")
    nn.init.zeros_(layer.attention.channel_fc.weight)
    a, x = layer.attention, torch.randn(2, 8, 6, 5)
    squeezed = x.mean((2, 3), keepdim=True)
    hidden = torch.relu(F.conv2d(squeezed, a.fc.weight))
    excited = torch.sigmoid(F.conv2d(hidden, a.filter_fc.weight, a.filter_fc.bias))
    expected = excited * F.conv2d(x, layer.weight[0] / 2)
    torch.testing.assert_close(layer(x), expected)


def test_set_temperature_reaches_every_layer_and_flattens_the_attention() -> None:
    network = nn.Sequential(ODConv2d(3, 4, 3), DyConv2d(4, 4, 3), CondConv2d(4, 4, 3))
    assert set_temperature(network, 1e6) == 2
    with torch.no_grad():
        attention = network[0].attention(torch.randn(2, 3, 5, 5), network[0].temperature)
    assert all(part is not None and (part - part.mean()).abs().max() < 1e-4 for part in attention)
    with pytest.raises(ValueError, match="temperature=0"):
        set_temperature(network, 0)


def test_the_public_schedule_of_dyconv() -> None:
    network = nn.Sequential(DyConv2d(3, 4, 3, temperature=34.0), CondConv2d(4, 4, 3))
    seen = []
    for _ in range(13):
        seen.append(float(network[0].temperature))
        assert lower_temperature(network) == 1
    assert seen == [*range(34, 0, -3), 1]
    with pytest.raises(ValueError, match="by=0"):
        lower_temperature(network, 0)


def test_checkpoint_without_temperature_loads_strictly() -> None:
    layer = ODConv2d(3, 4, 3, temperature=31.0)
    state = layer.state_dict()
    assert state.pop("temperature") == 31
    layer.load_state_dict(state, strict=True)
    assert layer.temperature == 31
    assert "temperature" not in state


def test_dynet_mixes_maps_in_training_and_kernels_in_inference() -> None:
    torch.manual_seed(0)
    layer = DyNetConv2d(4, 6, 3, padding=1, dropout=0.0)
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(layer.train()(x), layer.eval()(x))
    dropped = DyNetConv2d(4, 6, 3).train()
    assert not torch.equal(dropped.coefficients(x), dropped.coefficients(x))


def test_batch_norm_of_the_attention_uses_running_statistics_for_one_sample() -> None:
    layer = ODConv2d(4, 6, 3).train()
    layer.attention.bn.running_mean.fill_(0.5)
    x = torch.randn(1, 4, 5, 5)
    torch.testing.assert_close(layer(x), layer.eval()(x))


def test_dynamic_conv_depends_on_its_guide() -> None:
    torch.manual_seed(0)
    layer = DynamicConv2d(3, 4, 3, guide_channels=2)
    x, guide = torch.randn(2, 3, 6, 6), torch.randn(2, 2)
    y = layer(x, guide)
    for i, kernel in enumerate(layer.kernels(guide)):
        torch.testing.assert_close(y[i], F.conv2d(x[i], kernel, layer.bias[0]))
    assert not torch.allclose(layer(x, -guide), y)


@pytest.mark.parametrize("mode", ["joint", "shared", "perchannel"])
def test_local_filter_with_softmax_keeps_constants(mode: str) -> None:
    layer = DynamicLocalFilter2d(3, 2, kernel_size=3, mode=mode, hidden_channels=4)
    y = layer(torch.ones(2, 3, 7, 8), torch.randn(2, 2, 7, 8))
    inner = y[..., 1:-1, 1:-1]
    torch.testing.assert_close(inner, torch.full_like(inner, 3.0 if mode == "joint" else 1.0))


MASK_FILTERS = {
    "local": functools.partial(DynamicLocalFilter2d, hidden_channels=4),
    "multi_scale": DynamicMultiScaleFilter2d,
    "pyramid": DynamicDilatedPyramid2d,
}


@pytest.mark.parametrize("kind", MASK_FILTERS)
def test_guided_filters(kind: str) -> None:
    torch.manual_seed(0)
    layer = MASK_FILTERS[kind](8, 5, 12)
    for size, guide_size, batch in (((6, 7), (6, 7), 2), ((6, 7), (3, 4), 1), ((1, 1), (1, 1), 1)):
        x = torch.randn(batch, 8, *size, requires_grad=True)
        guide = torch.randn(batch, 5, *guide_size, requires_grad=True)
        y = layer.train()(x, guide)
        assert y.shape == (batch, 12, *size)
        y.square().sum().backward()
        assert all(p.grad is not None for p in layer.parameters())
    layer.eval()
    together = layer(torch.ones(2, 8, 6, 7), guide.expand(2, 5, 1, 1))
    with torch.autocast("cpu", torch.bfloat16):
        low = layer(torch.ones(2, 8, 6, 7), guide.expand(2, 5, 1, 1))
    assert (low - together).norm() < 0.05 * together.norm()
    assert layer(torch.ones(0, 8, 6, 7), torch.ones(0, 5, 6, 7)).shape == (0, 12, 6, 7)


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_norms(norm: str) -> None:
    x = torch.randn(1, 8, 1, 1)
    assert DynamicContextFilter2d(8, 4, 3, fusion=True, norm=norm)(x).isfinite().all()
    assert DynamicDilatedPyramid2d(8, 8, 8, norm=norm)(x, x).isfinite().all()
    assert ODConv2d(8, 4, 1, norm=norm)(x).isfinite().all()


def test_hybrid_enhanced_loss() -> None:
    target = torch.zeros(2, 1, 12, 12)
    target[..., 3:8, 3:9] = 1
    assert hybrid_enhanced_loss(target, target).loss == 0
    opposite = hybrid_enhanced_loss(1 - target, target.bool())
    torch.testing.assert_close(opposite.loss, torch.tensor(3.0))


def test_wrong_options_are_named() -> None:
    for build, message in (
        (lambda: ODConv2d(4, 4, 3, num_experts=0), "num_experts is 0"),
        (lambda: ODConv2d(4, 4, 3, reduction=0.0), "reduction=0.0"),
        (lambda: DyNetConv2d(4, 4, 3, dropout=1.0), "dropout=1.0"),
        (lambda: DynamicLocalFilter2d(4, 4, kernel_size=2), "kernel_size=2"),
        (lambda: DynamicDilatedPyramid2d(4, 4, 4, kernel_size=2), "kernel_size=2"),
        (lambda: DynamicDilatedPyramid2d(4, 4, 4, dilations=()), "dilations"),
        (lambda: DynamicMultiScaleFilter2d(4, 4, 4, filter_sizes=(0,)), "filter_sizes"),
        (lambda: DynamicMultiScaleFilter2d(4, 4, 4)(torch.ones(1, 4, 2, 2)), "guide=None"),
    ):
        with pytest.raises(ValueError, match=message):
            build()
