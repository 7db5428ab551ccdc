"""Converts the names of detectron2's ResNets, as in AdelaiDet's checkpoints, to torchvision's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

# Below a BiFPN the ResNet is one module deeper.
_RESNET = r"backbone\.bottom_up\.(?:backbone\.)?"
LEAF = r"(weight|bias|running_mean|running_var|num_batches_tracked)"

RESNET_RULES = [
    (rf"{_RESNET}stem\.conv1\.weight", r"backbone.network.conv1.weight"),
    (rf"{_RESNET}stem\.conv1\.norm\.{LEAF}", r"backbone.network.bn1.\1"),
    *(
        rule
        for stage in range(2, 6)
        for rule in (
            (
                rf"{_RESNET}res{stage}\.(\d+)\.conv(\d)\.weight",
                rf"backbone.network.layer{stage - 1}.\1.conv\2.weight",
            ),
            (
                rf"{_RESNET}res{stage}\.(\d+)\.conv2_offset\.(weight|bias)",
                rf"backbone.network.layer{stage - 1}.\1.conv2.offset.\2",
            ),
            (
                rf"{_RESNET}res{stage}\.(\d+)\.conv(\d)\.norm\.{LEAF}",
                rf"backbone.network.layer{stage - 1}.\1.bn\2.\3",
            ),
            (
                rf"{_RESNET}res{stage}\.(\d+)\.shortcut\.weight",
                rf"backbone.network.layer{stage - 1}.\1.downsample.0.weight",
            ),
            (
                rf"{_RESNET}res{stage}\.(\d+)\.shortcut\.norm\.{LEAF}",
                rf"backbone.network.layer{stage - 1}.\1.downsample.1.\2",
            ),
        )
    ),
]
"""(regular expression, replacement) of each tensor of the backbone."""


def with_counters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Adds the batch counters, which frozen batch norms of other projects do not have."""
    counted = dict(state)
    for key in state:
        if key.endswith(".running_mean"):
            counter = key.removesuffix("running_mean") + "num_batches_tracked"
            counted.setdefault(counter, torch.tensor(0))
    return counted
