"""A layer that started from static weights learns at first as the static convolution does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condseg.layers import CondConv2d, ConvSlot, DyConv2d, DyNetConv2d, ODConv2d, to_dynamic
from condseg.models.backbones.files import load_strict
from condseg.training.parameter_groups import parameter_groups, scale_learning_rates

LAYERS: dict[str, tuple[type[ConvSlot], dict[str, Any]]] = {
    "odconv1": (ODConv2d, {"num_experts": 1}),
    "odconv4": (ODConv2d, {"num_experts": 4}),
    "odconv4_layernorm": (ODConv2d, {"num_experts": 4, "norm": "layer"}),
    "dyconv": (DyConv2d, {}),
    "condconv": (CondConv2d, {}),
    "condconv4": (CondConv2d, {"num_experts": 4}),
    "dynet": (DyNetConv2d, {}),
}
KERNELS: dict[str, dict[str, Any]] = {
    "3x3": {"out_channels": 32, "kernel_size": 3, "padding": 1},
    "1x1": {"out_channels": 48, "kernel_size": 1, "bias": False},
    "depthwise": {"out_channels": 32, "kernel_size": 3, "padding": 1, "groups": 32},
}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=1e-4),
    "adamw": partial(torch.optim.AdamW, lr=0.001, weight_decay=0.01),
}
layers = pytest.mark.parametrize("layer", LAYERS)
optimizers = pytest.mark.parametrize("optimizer", OPTIMIZERS)


def step(network: nn.Module, optimizer: str, x: Tensor) -> None:
    built = OPTIMIZERS[optimizer](parameter_groups(network))
    scale_learning_rates(built, backbone=1.0, attention=1.0)
    y = network(x)
    target = torch.sin(torch.arange(y.numel(), dtype=y.dtype)).view_as(y)
    F.mse_loss(y, target).backward()  # type: ignore[no-untyped-call]
    built.step()


def images(channels: int = 32) -> Tensor:
    means = torch.randn(8, channels, 1, 1)
    return F.relu(torch.randn(8, channels, 12, 12) + means)


def kernels(network: nn.Module, x: Tensor) -> list[Tensor]:
    """Kernels (B, O, C/g, *k) and biases (B, O) of all convolutions, for each sample."""
    network, found = copy.deepcopy(network).eval(), []

    def keep(module: Any, args: Any, output: Any) -> None:
        if isinstance(module, ConvSlot):
            found.extend(module.kernel_and_bias(args[0]))
        else:
            found.extend(p[None].expand(len(x), *p.shape) for p in module.parameters())

    for module in network.modules():
        if isinstance(module, ConvSlot) or type(module) is nn.Conv2d:
            module.register_forward_hook(keep)
    with torch.no_grad():
        network(x)
    return [part for part in found if part is not None]


def assert_learns_alike(static: nn.Module, dynamic: nn.Module, optimizer: str, x: Tensor) -> None:
    """One step moves each sample's kernels as it moves the static ones."""
    moves = []
    for network in (static, dynamic):
        before = kernels(network, x)
        step(network, optimizer, x)
        moves.append([a - b for a, b in zip(kernels(network, x), before, strict=True)])
    for expected, moved in zip(*moves, strict=True):
        expected, moved = expected.flatten(1), moved.flatten(1)
        assert F.cosine_similarity(moved, expected, dim=1).min() > 0.99
        length = moved.norm(dim=1) / expected.norm(dim=1)
        assert length.min() > 0.9
        assert length.max() < 1.1


@layers
@pytest.mark.parametrize("kernel", KERNELS)
@optimizers
def test_a_layer(layer: str, kernel: str, optimizer: str) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(32, **KERNELS[kernel])
    cls, options = LAYERS[layer]
    dynamic = nn.Sequential(cls.from_static(conv, **options))
    assert_learns_alike(nn.Sequential(conv), dynamic, optimizer, images())


@layers
@optimizers
def test_a_network(layer: str, optimizer: str) -> None:
    torch.manual_seed(0)
    static, width = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1)), 32
    for options in KERNELS.values():
        conv = nn.Conv2d(width, **{**options, "groups": 1, "bias": False})
        static.extend([conv, nn.BatchNorm2d(width := conv.out_channels), nn.ReLU()])
    dynamic, (cls, options) = copy.deepcopy(static), LAYERS[layer]
    to_dynamic(dynamic, partial(cls, **options), [str(i) for i in range(1, len(static), 3)])
    assert_learns_alike(static, dynamic, optimizer, images(3))


@layers
@optimizers
def test_weight_decay(layer: str, optimizer: str) -> None:
    """Without gradients of the loss, the kernel shrinks by the rate times the decay."""
    torch.manual_seed(0)
    cls, options = LAYERS[layer]
    network = nn.Sequential(cls.from_static(nn.Conv2d(16, 16, 3), **options)).double()
    x = images(16).double()
    before, _ = kernels(network, x)
    built = OPTIMIZERS[optimizer](parameter_groups(network))
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    built.step()
    after, _ = kernels(network, x)
    decay = built.defaults["lr"] * built.defaults["weight_decay"]
    torch.testing.assert_close(after, before * (1 - decay), rtol=1e-9, atol=0.0)


@layers
def test_the_scale_is_saved(layer: str) -> None:
    """A checkpoint brings its scale; one without an entry, as published ones, has none."""
    torch.manual_seed(0)
    cls, options = LAYERS[layer]
    natural = cls.from_static(nn.Conv2d(16, 16, 3), **options).eval()
    built = cls(16, 16, 3, **options).eval()
    x, state = images(16), natural.state_dict()
    assert built.attention_lr == 1
    assert natural.attention_lr < 0.2
    built.load_state_dict(state)
    torch.testing.assert_close(built(x), natural(x))
    assert built.attention_lr == natural.attention_lr
    del state["natural_scale"]
    built.load_state_dict(state)
    assert built.attention_lr == 1
    # The attentions start at 1/2 in the published form, and their number is the published one.
    published = {ODConv2d: 1 / 8, CondConv2d: options.get("num_experts", 8) / 2}.get(cls, 1)
    torch.testing.assert_close(
        built.kernel_and_bias(x)[0], published * natural.kernel_and_bias(x)[0]
    )


def test_files_bring_the_scale() -> None:
    network = nn.Sequential(ODConv2d.from_static(nn.Conv2d(4, 4, 3)))
    natural = network.state_dict()
    published = {k: v for k, v in natural.items() if k != "0.natural_scale"}
    for state, scale in ((published, False), (natural, True), (published, False)):
        load_strict(network, state, source="a file")
        assert network[0].natural_scale == scale
    with pytest.raises(ValueError, match=r"unknown: 1\.natural_scale"):
        load_strict(network, natural | {"1.natural_scale": torch.tensor(True)}, source="a file")
