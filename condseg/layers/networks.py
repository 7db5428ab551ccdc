"""Networks of the ODConv paper, with the names of its published checkpoints."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn
from torchvision.models import mobilenet_v2, resnet18, resnet34, resnet50, resnet101

from condseg.layers.convert import to_dynamic
from condseg.layers.odconv import ODConv2d

_STATIC = {
    "od_resnet18": resnet18,
    "od_resnet34": resnet34,
    "od_resnet50": resnet50,
    "od_resnet101": resnet101,
    "od_mobilenetv2_050": functools.partial(mobilenet_v2, width_mult=0.5),
    "od_mobilenetv2_075": functools.partial(mobilenet_v2, width_mult=0.75),
    "od_mobilenetv2_100": functools.partial(mobilenet_v2, width_mult=1.0),
}
OD_NETWORKS = tuple(_STATIC)


def od_network(
    name: str, num_experts: int = 1, num_classes: int = 1000, reduction: float = 0.0625
) -> nn.Module:
    """Build a classification network of the paper; its state dict has the official names.

    Args:
        name: one of ``OD_NETWORKS``.
        num_experts: 1 or 4 in the paper.
        num_classes: of the last layer.
        reduction: of the attentions.

    Shape:
        (B, 3, H, W) -> (B, num_classes) logits.

    Raises:
        ValueError: for an unknown name.

    Source:
        Li et al., "Omni-Dimensional Dynamic Convolution", section 4.1; torchvision's networks, all
        of whose convolutions but the stem and the shortcuts are dynamic.
    """
    if name not in _STATIC:
        raise ValueError(f"name={name!r} must be one of {OD_NETWORKS}")
    network: nn.Module = _STATIC[name](num_classes=num_classes)
    factory: Any = functools.partial(ODConv2d, num_experts=num_experts, reduction=reduction)
    to_dynamic(network, factory, copy=False)
    return network


od_resnet18 = functools.partial(od_network, "od_resnet18")
od_resnet34 = functools.partial(od_network, "od_resnet34")
od_resnet50 = functools.partial(od_network, "od_resnet50")
od_resnet101 = functools.partial(od_network, "od_resnet101")
od_mobilenetv2_050 = functools.partial(od_network, "od_mobilenetv2_050")
od_mobilenetv2_075 = functools.partial(od_network, "od_mobilenetv2_075")
od_mobilenetv2_100 = functools.partial(od_network, "od_mobilenetv2_100")
