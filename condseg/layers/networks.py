"""Classification networks of the papers: torchvision's, with each paper's dynamic layers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn
from torchvision.models import mobilenet_v2, resnet18, resnet34, resnet50, resnet101

from condseg.layers.condconv import CondConv2d
from condseg.layers.convert import to_dynamic
from condseg.layers.dyconv import DyConv2d
from condseg.layers.odconv import ODConv2d

_LAYERS: dict[str, Any] = {
    "od": functools.partial(ODConv2d, num_experts=1),
    "dy": DyConv2d,
    "cond": CondConv2d,
}
_STATIC: dict[str, Callable[..., nn.Module]] = {
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "resnet101": resnet101,
    "mobilenetv2_050": functools.partial(mobilenet_v2, width_mult=0.5),
    "mobilenetv2_075": functools.partial(mobilenet_v2, width_mult=0.75),
    "mobilenetv2_100": functools.partial(mobilenet_v2, width_mult=1.0),
}
NETWORKS = tuple(f"{layer}_{static}" for layer in _LAYERS for static in _STATIC)


def dynamic_network(name: str, num_classes: int = 1000, **options: Any) -> nn.Module:
    """Build a classification network of a paper; each name is also a function of this module.

    ODConv: all convolutions but the stem and the shortcuts are dynamic, 1 expert by default; the
    state dict has the keys of the published checkpoints. DyConv: all but the first, 4 experts.
    CondConv: the last three blocks of a ResNet, the last six of a MobileNetV2, and the classifier,
    8 experts. We know no public checkpoints of the latter two.

    Args:
        name: one of ``NETWORKS``, such as ``od_resnet18``, ``dy_mobilenetv2_050``.
        num_classes: of the last layer.
        options: of the layer: ``num_experts``, ``reduction``, ``temperature``, ...

    Shape:
        (B, 3, H, W) -> (B, num_classes) logits.

    Raises:
        ValueError: an unknown name.

    Source:
        Li et al., "Omni-Dimensional Dynamic Convolution", section 4.1; Chen et al., "Dynamic
        Convolution", section 5.1; Yang et al., "CondConv", section 4.1, where the layers of a
        MobileNet's block share their routing; here each has its own.
    """
    if name not in NETWORKS:
        raise ValueError(f"name={name!r} must be one of {NETWORKS}")
    layer, _, static = name.partition("_")
    network = _STATIC[static](num_classes=num_classes)
    factory = functools.partial(_LAYERS[layer], **options)
    if layer == "cond" and static.startswith("mobilenet"):
        to_dynamic(network, factory, [f"features.{i}" for i in range(12, 18)], copy=False)
    else:
        to_dynamic(network, factory, copy=False)
    if layer == "cond":  # the linear layer becomes a 1x1 convolution of a map of one pixel
        last = "fc" if static.startswith("resnet") else "classifier.1"
        conv = factory(network.get_submodule(last).in_features, num_classes, 1)
        network.set_submodule(last, nn.Sequential(nn.Unflatten(1, (-1, 1, 1)), conv, nn.Flatten()))
    return network


def __getattr__(name: str) -> Callable[..., nn.Module]:
    if name in NETWORKS:
        return functools.partial(dynamic_network, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
