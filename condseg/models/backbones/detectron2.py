"""Converts the names of detectron2's ResNets, as in AdelaiDet's checkpoints, to torchvision's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

# Below a BiFPN the ResNet is one module deeper.
_RESNET = r"backbone\.bottom_up\.(?:backbone\.)?"
LEAF = r"(weight|bias|running_mean|running_var|num_batches_tracked)"

_IN_BLOCK = (
    (r"conv(\d)\.weight", r"conv\2.weight"),
    (r"conv2_offset\.(weight|bias)", r"conv2.offset.\2"),
    (rf"conv(\d)\.norm\.{LEAF}", r"bn\2.\3"),
    (r"shortcut\.weight", r"downsample.0.weight"),
    (rf"shortcut\.norm\.{LEAF}", r"downsample.1.\2"),
)
RESNET_RULES = [
    (rf"{_RESNET}stem\.conv1\.weight", r"backbone.network.conv1.weight"),
    (rf"{_RESNET}stem\.conv1\.norm\.{LEAF}", r"backbone.network.bn1.\1"),
    *(
        (rf"{_RESNET}res{stage}\.(\d+)\.{old}", rf"backbone.network.layer{stage - 1}.\1.{new}")
        for stage in range(2, 6)
        for old, new in _IN_BLOCK
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
