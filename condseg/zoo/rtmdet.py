"""Converts the names of mmdetection's RTMDet-Ins to condseg's, and infers the size."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from condseg.models.backbones.cspnext import SCALES, CSPNeXt
from condseg.models.backbones.files import rename
from condseg.zoo.architecture import count, mask_head_arguments, shape_of

POSTPROCESS = {"clip_before_nms": True, "mask_interpolation": "logits"}
"""mmdetection's, besides the thresholds, which are the defaults."""

_HEAD, _MASK = r"bbox_head\.", r"bbox_head\.mask_head\."
_COPIES = re.compile(
    rf"({_HEAD})(?:cls_convs\.[1-9]\d*(\.\d+\.conv\.)|reg_convs\.\d+(\.\d+\.conv\.)"
    r"|reg_convs(\.\d+\.\d+\.bn\.))(.+)"
)


def convert_rtmdet(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Renames mmdetection's tensors (``state_dict``).

    A checkpoint has the convolutions that the levels share once for each level, and the tower of
    the classes once more as that of the boxes.

    Raises:
        ValueError: an unknown name, or copies that are not equal.
    """
    kept = {key: tensor for key, tensor in state.items() if not _COPIES.fullmatch(key)}
    for key in state.keys() - kept.keys():
        match = _COPIES.fullmatch(key)
        assert match is not None
        head, of_level, of_boxes, norm, rest = match.groups()
        original = f"{head}cls_convs" + (norm or f".0{of_level or of_boxes}") + rest
        if original not in kept or not torch.equal(state[key], kept[original]):
            raise ValueError(
                f"weights: {source}: {key} is not {original}; levels that share convolutions "
                "(share_conv) are supported"
            )
    convs = count(state, rf"{_MASK}stacked_convs\.(\d+)\.conv\.weight")
    return rename(kept, _rules(convs), {}, "mmdetection's RTMDet-Ins")


def _rules(mask_convs: int) -> list[tuple[str, str]]:
    """The mask branch's last convolution is numbered after its ``mask_convs`` blocks."""
    neck = {
        "reduce_layers": "reduce",
        "top_down_blocks": "top_down",
        "downsamples": "down",
        "bottom_up_blocks": "bottom_up",
        "out_convs": "output",
    }
    outputs = {"rtm_cls": "class_logits", "rtm_reg": "box_ltrb", "rtm_kernel": "controller"}
    return [
        (r"backbone\.(.+)", r"backbone.network.\1"),
        *((rf"neck\.{old}\.(.+)", rf"pyramid.{new}.\1") for old, new in neck.items()),
        (rf"{_HEAD}cls_convs\.(\d+)\.(\d+)\.conv\.(.+)", r"head.tower.convs.\1.\2.\3"),
        (rf"{_HEAD}cls_convs\.(\d+)\.(\d+)\.bn\.(.+)", r"head.tower.norms.\1.\2.\3"),
        (rf"{_HEAD}kernel_convs\.(\d+)\.(\d+)\.conv\.(.+)", r"head.kernel_tower.convs.\1.\2.\3"),
        (rf"{_HEAD}kernel_convs\.(\d+)\.(\d+)\.bn\.(.+)", r"head.kernel_tower.norms.\1.\2.\3"),
        *((rf"{_HEAD}{old}\.(\d+)\.(.+)", rf"head.{new}.\1.\2") for old, new in outputs.items()),
        (rf"{_MASK}fusion_conv\.(.+)", r"mask_branch.refine.\1"),
        (rf"{_MASK}stacked_convs\.(\d+)\.conv\.(.+)", r"mask_branch.tower.\1.0.\2"),
        (rf"{_MASK}stacked_convs\.(\d+)\.bn\.(.+)", r"mask_branch.tower.\1.1.\2"),
        (rf"{_MASK}projection\.(.+)", rf"mask_branch.tower.{mask_convs}.\1"),
    ]


def rtmdet_arguments(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """The arguments of ``build_condinst`` for these tensors, which have condseg's names.

    Raises:
        ValueError: a part is missing, or the backbone is of another size than those published.
    """
    convs = count(state, r"mask_branch\.tower\.(\d+)\.0\.weight")
    mask_features, width = shape_of(state, f"mask_branch.tower.{convs}.weight", source)[:2]
    num_classes, channels = shape_of(state, "head.class_logits.0.weight", source)[:2]
    num_params = shape_of(state, "head.controller.0.weight", source)[0]
    blocks = count(state, r"pyramid\.top_down\.0\.blocks\.(\d+)\.conv1\.conv\.weight")
    tower_convs = count(state, r"head\.tower\.convs\.0\.(\d+)\.weight")
    return {
        "backbone": {
            "name": _size(state, source),
            "weights": None,
            "norm": "batch",
            "freeze_stages": 0,
            "letterbox": True,
        },
        "num_classes": num_classes,
        "channels": channels,
        "pyramid": {"class_path": "condseg.models.PAFPN", "init_args": {"num_blocks": blocks}},
        "head": {
            "class_path": "condseg.models.RTMDetHead",
            "init_args": {"tower_convs": tower_convs},
        },
        "mask_branch": {"class_path": "condseg.models.ConcatMaskBranch"},
        "mask_branch_channels": width,
        "mask_branch_convs": convs,
        "mask_features": mask_features,
        "mask_head": {"class_path": "condseg.models.RTMDetMaskHead"},
        **mask_head_arguments(num_params, mask_features, source),
    }


def _size(state: Mapping[str, Tensor], source: str) -> str:
    """The name of the backbone with the width of these tensors and as many blocks."""
    prefix = "backbone.network."
    found = _form({key.removeprefix(prefix): tensor for key, tensor in state.items()}, source)
    forms = {}
    for name in SCALES:
        with torch.device("meta"):
            forms[name] = _form(CSPNeXt(name).state_dict(), name)
    for name, form in forms.items():
        if form == found:
            return name
    listed = ", ".join(f"{name} {width} {blocks}" for name, (width, blocks) in forms.items())
    raise ValueError(
        f"weights: {source}: the backbone has {found[0]} channels in its stem and {found[1]} "
        f"blocks; supported are {listed}"
    )


def _form(state: Mapping[str, Tensor], source: str) -> tuple[int, tuple[int, ...]]:
    """The channels of the stem, and the blocks of the stages."""
    blocks = r"stage{}\.\d\.blocks\.(\d+)\.conv1\.conv\.weight"
    depths = tuple(count(state, blocks.format(stage)) for stage in (1, 2, 3, 4))
    return shape_of(state, "stem.2.conv.weight", source)[0], depths
