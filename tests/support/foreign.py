"""Checkpoints in the form of other projects, from a small network of condseg."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from support.networks import tiny_backbone, tiny_condinst
from torch import Tensor

from condseg.models import Backbone, BiFPN, CondInst

PARTS = {"num_classes": 80, "mask_branch_channels": 16, "mask_branch_convs": 2}
# AdelaiDet's BiFPN names a node by its level and the numbers of its inputs: five maps, then the
# nodes down to P3 and up to P7.
_NODES = ("f3_3_4", "f2_2_5", "f1_1_6", "f0_0_7", "f1_1_7_8", "f2_2_6_9", "f3_3_5_10", "f4_4_11")
_ROUND = r"pyramid\.blocks\.(\d)\."
_BIFPN = (
    (r"pyramid\.p6\.0\.(.+)", r"backbone.bottom_up.res6.reduction.\1"),
    (r"pyramid\.p6\.1\.(.+)", r"backbone.bottom_up.res6.reduction.norm.\1"),
    (rf"{_ROUND}lateral\.(\d)\.0\.(.+)", r"backbone.repeated_bifpn.\1.lateral_\2_f\2.\3"),
    (rf"{_ROUND}lateral\.(\d)\.1\.(.+)", r"backbone.repeated_bifpn.\1.lateral_\2_f\2.norm.\3"),
    *(
        (rf"{_ROUND}{ours.format(i)}", rf"backbone.repeated_bifpn.\1.{theirs.format(node)}")
        for i, node in enumerate(_NODES)
        for ours, theirs in (
            (r"weights\.{}", r"weights_{}"),
            (r"output\.{}\.0\.(.+)", r"outputs_{}.\2"),
            (r"output\.{}\.1\.(.+)", r"outputs_{}.norm.\2"),
        )
    ),
)
_ADELAIDET = (
    *_BIFPN,
    (r"backbone\.network\.conv1\.weight", r"resnet.stem.conv1.weight"),
    (r"backbone\.network\.bn1\.(.+)", r"resnet.stem.conv1.norm.\1"),
    (r"backbone\.network\.layer(\d)\.(\d+)\.conv(\d)\.weight", r"resnet.res{0}.\2.conv\3.weight"),
    (
        r"backbone\.network\.layer(\d)\.(\d+)\.conv2\.offset\.(.+)",
        r"resnet.res{0}.\2.conv2_offset.\3",
    ),
    (r"backbone\.network\.layer(\d)\.(\d+)\.bn(\d)\.(.+)", r"resnet.res{0}.\2.conv\3.norm.\4"),
    (r"backbone\.network\.layer(\d)\.(\d+)\.downsample\.0\.(.+)", r"resnet.res{0}.\2.shortcut.\3"),
    (
        r"backbone\.network\.layer(\d)\.(\d+)\.downsample\.1\.(.+)",
        r"resnet.res{0}.\2.shortcut.norm.\3",
    ),
    (r"pyramid\.(lateral|output)\.(\d)\.(.+)", r"backbone.fpn_\g<1>{1}.\3"),
    (r"pyramid\.(p6|p7)\.(.+)", r"backbone.top_block.\1.\2"),
    (r"head\.class_tower\.(.+)", r"proposal_generator.fcos_head.cls_tower.\1"),
    (r"head\.box_tower\.(.+)", r"proposal_generator.fcos_head.bbox_tower.\1"),
    (r"head\.class_logits\.(.+)", r"proposal_generator.fcos_head.cls_logits.\1"),
    (r"head\.box_ltrb\.(.+)", r"proposal_generator.fcos_head.bbox_pred.\1"),
    (r"head\.centerness\.(.+)", r"proposal_generator.fcos_head.ctrness.\1"),
    (r"head\.controller\.(.+)", r"controller.\1"),
    (r"mask_branch\.semantic_tower\.(.+)", r"mask_branch.seg_head.\1"),
    (r"mask_branch\.semantic_logits\.(.+)", r"mask_branch.logits.\1"),
    (r"mask_branch\.(.+)", r"mask_branch.\1"),
)
_MMDETECTION = (
    (r"backbone\.network\.(.+)", r"backbone.\1"),
    (r"pyramid\.lateral\.(\d)\.(.+)", r"neck.lateral_convs.\1.conv.\2"),
    (r"pyramid\.output\.(\d)\.(.+)", r"neck.fpn_convs.\1.conv.\2"),
    (r"pyramid\.p6\.(.+)", r"neck.fpn_convs.3.conv.\1"),
    (r"pyramid\.p7\.(.+)", r"neck.fpn_convs.4.conv.\1"),
    (r"head\.class_tower\.0\.(.+)", r"bbox_head.cls_convs.0.conv.\1"),
    (r"head\.class_tower\.1\.(.+)", r"bbox_head.cls_convs.0.gn.\1"),
    (r"head\.box_tower\.0\.(.+)", r"bbox_head.reg_convs.0.conv.\1"),
    (r"head\.box_tower\.1\.(.+)", r"bbox_head.reg_convs.0.gn.\1"),
    (r"head\.class_logits\.(.+)", r"bbox_head.conv_cls.\1"),
    (r"head\.box_ltrb\.(.+)", r"bbox_head.conv_reg.\1"),
    (r"head\.centerness\.(.+)", r"bbox_head.conv_centerness.\1"),
    (r"head\.controller\.(.+)", r"bbox_head.controller.\1"),
    (r"mask_branch\.refine\.(\d)\.0\.(.+)", r"feature.convs_all_levels.\1.conv\1.conv.\2"),
    (r"mask_branch\.refine\.(\d)\.1\.(.+)", r"feature.convs_all_levels.\1.conv\1.bn.\2"),
    (r"mask_branch\.tower\.([01])\.0\.(.+)", r"feature.conv_branch.\1.conv.\2"),
    (r"mask_branch\.tower\.([01])\.1\.(.+)", r"feature.conv_branch.\1.bn.\2"),
    (r"mask_branch\.tower\.2\.(.+)", r"feature.conv_pred.\1"),
)


def save(content: object, path: Path) -> str:
    torch.save(content, path)
    return str(path)


def small_network(style: str = "caffe", backbone: Backbone | None = None, **parts: Any) -> CondInst:
    return tiny_condinst(backbone or tiny_backbone(style=style), **PARTS | parts).eval()


def adelaidet(network: CondInst) -> dict[str, Tensor]:
    """Without counters of frozen batch norms; the constants of normalization are tensors."""
    resnet = "backbone.bottom_up"
    if isinstance(network.pyramid, BiFPN):  # the ResNet is one module deeper
        resnet += ".backbone"
    state = _renamed(network, _ADELAIDET, {"resnet": resnet})
    frozen = rf"{resnet}.(stem|res[2-5])\."
    state = {k: v for k, v in state.items() if "num_batches" not in k or not re.match(frozen, k)}
    for level, scale in enumerate(network.head.scales.detach()):
        state[f"proposal_generator.fcos_head.scales.{level}.scale"] = scale.reshape(1)
    return state | {
        "pixel_mean": torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1),
        "pixel_std": torch.ones(3, 1, 1),
        "mask_head.sizes_of_interest": torch.tensor([64, 128, 256, 512, 1024]),
    }


def mmdetection(network: CondInst) -> dict[str, Tensor]:
    state = _renamed(network, _MMDETECTION, {"feature": "mask_head.mask_feature_head"})
    state = {key: tensor.clone() for key, tensor in state.items()}
    for level, scale in enumerate(network.head.scales.detach()):
        state[f"bbox_head.scales.{level}.scale"] = scale.clone()
    return state


def _renamed(
    network: CondInst, rules: tuple[tuple[str, str], ...], first: dict[str, str]
) -> dict[str, Tensor]:
    """``rules`` write {0} for the stage and {1} for the level, ``first`` the first name."""
    renamed = {}
    for key, tensor in network.state_dict().items():
        if key == "head.scales":
            continue
        match, new = next((m, n) for old, n in rules if (m := re.fullmatch(old, key)))
        numbers = [int(group) for group in match.groups() if group and group.isdigit()] or [0]
        new = new.replace("{0}", str(numbers[0] + 1)).replace("{1}", str(numbers[0] + 3))
        name, _, rest = match.expand(new).partition(".")
        renamed[f"{first.get(name, name)}.{rest}"] = tensor
    return renamed
