"""The architecture of another project's checkpoint, inferred from its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from condseg.models.backbones.resnet import BLOCKS


def network_arguments(state: Mapping[str, Tensor], style: str, source: str) -> dict[str, Any]:
    """The arguments of ``build_condinst`` for these tensors.

    Args:
        state: by condseg's names.
        style: of the backbone, ``caffe`` or ``torchvision``; cannot be inferred.
        source: of the tensors, for messages.

    Raises:
        ValueError: a part is missing or unknown.
    """
    branch_convs = count(state, r"mask_branch\.tower\.(\d+)\.0\.weight")
    mask_features = shape_of(state, f"mask_branch.tower.{branch_convs}.weight", source)[0]
    num_classes, channels = shape_of(state, "head.class_logits.weight", source)[:2]
    num_params = shape_of(state, "head.controller.weight", source)[0]
    return {
        "backbone": _backbone(state, style, source),
        "num_classes": num_classes,
        "channels": channels,
        "pyramid": _pyramid(state),
        "head": {
            "class_path": "condseg.models.FCOSHead",
            "init_args": {"tower_convs": _tower_convs(state)},
        },
        "mask_branch_channels": shape_of(state, "mask_branch.refine.0.0.weight", source)[0],
        "mask_branch_convs": branch_convs,
        "mask_features": mask_features,
        **mask_head_arguments(num_params, mask_features, source),
        "semantic_loss": "mask_branch.semantic_logits.weight" in state,
    }


def _backbone(state: Mapping[str, Tensor], style: str, source: str) -> dict[str, Any]:
    prefix = "backbone.network."
    depths = tuple(
        count(state, rf"backbone\.network\.layer{stage}\.(\d+)\.conv1\.weight")
        for stage in (1, 2, 3, 4)
    )
    expansion = 4 if f"{prefix}layer1.0.conv3.weight" in state else 1
    for name, (block, blocks) in BLOCKS.items():
        if (block.expansion, blocks) == (expansion, depths):
            return {
                "name": name,
                "weights": None,
                "style": style,
                "width": shape_of(state, f"{prefix}layer1.0.conv1.weight", source)[0],
                "stem_width": shape_of(state, f"{prefix}conv1.weight", source)[0],
                **_deformable(state, prefix),
            }
    raise ValueError(
        f"weights: {source}: the backbone has {depths} blocks; supported are "
        f"{', '.join(f'{name} {blocks}' for name, (_, blocks) in BLOCKS.items())}"
    )


def _deformable(state: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    end = ".offset.weight"
    where = [key.removeprefix(prefix).removesuffix(end) for key in state if key.endswith(end)]
    conv = {"class_path": "condseg.layers.DeformConv2d"}
    return {"conv": conv, "where": where} if where else {}


def _pyramid(state: Mapping[str, Tensor]) -> dict[str, Any]:
    repeats = count(state, r"pyramid\.blocks\.(\d+)\.weights\.0")
    if repeats:
        init_args = {"num_repeats": repeats}
        return {"class_path": "condseg.models.BiFPN", "init_args": init_args}
    return {"class_path": "condseg.models.FPN", "init_args": {}}


def _tower_convs(state: Mapping[str, Tensor]) -> int:
    pattern = re.compile(r"head\.class_tower\.\d+\.weight")
    return sum(pattern.fullmatch(key) is not None and t.ndim == 4 for key, t in state.items())


def mask_head_arguments(num_params: int, mask_features: int, source: str) -> dict[str, Any]:
    """The arguments of a mask head of three layers with G parameters.

    With c hidden channels and i inputs, G = i c + c + c^2 + c + c + 1; i is the number of mask
    features, plus 2 with relative coordinates.
    """
    for relative_coords in (True, False):
        inputs = mask_features + 2 * relative_coords
        for c in range(1, num_params):
            if inputs * c + c * c + 3 * c + 1 == num_params:
                return {
                    "mask_head_channels": c,
                    "mask_head_layers": 3,
                    "relative_coords": relative_coords,
                }
    raise ValueError(
        f"weights: {source}: the controller has {num_params} outputs, which no mask head of three "
        f"layers on {mask_features} mask features needs"
    )


def count(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many different texts the pattern's group matches in the names."""
    return len({match[1] for key in state if (match := re.fullmatch(pattern, key))})


def shape_of(state: Mapping[str, Tensor], key: str, source: str) -> tuple[int, ...]:
    """The shape of a tensor; ValueError if it is missing."""
    if key not in state:
        raise ValueError(f"weights: {source}: no tensor corresponds to {key}")
    return tuple(state[key].shape)
