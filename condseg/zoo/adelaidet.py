"""Converts the names of AdelaiDet's CondInst and BoxInst (detectron2's) to condseg's.

Their ResNets are Caffe-style: ``Backbone(style="caffe")``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from condseg.models.backbones.detectron2 import LEAF, RESNET_RULES, with_counters
from condseg.models.backbones.files import rename

_HEAD = r"proposal_generator\.fcos_head\."

# Nodes of a BiFPN block in the order of computation: the level, counted from P3, and the maps that
# are merged, counted from C3 over the inputs and then the nodes.
_BIFPN_NODES = ("3_3_4", "2_2_5", "1_1_6", "0_0_7", "1_1_7_8", "2_2_6_9", "3_3_5_10", "4_4_11")
_BIFPN = r"backbone\.repeated_bifpn\.(\d+)\."
_BIFPN_RULES = [
    (r"backbone\.bottom_up\.res6\.reduction\.weight", r"pyramid.p6.0.weight"),
    (rf"backbone\.bottom_up\.res6\.reduction\.norm\.{LEAF}", r"pyramid.p6.1.\1"),
    (rf"{_BIFPN}lateral_(\d)_f\2\.(weight|bias)", r"pyramid.blocks.\1.lateral.\2.0.\3"),
    (rf"{_BIFPN}lateral_(\d)_f\2\.norm\.{LEAF}", r"pyramid.blocks.\1.lateral.\2.1.\3"),
    *(
        (rf"{_BIFPN}{old.format(node)}", rf"pyramid.blocks.\1.{new.format(number)}")
        for number, node in enumerate(_BIFPN_NODES)
        for old, new in (
            (r"weights_f{}", r"weights.{}"),
            (r"outputs_f{}\.weight", r"output.{}.0.weight"),
            (rf"outputs_f{{}}\.norm\.{LEAF}", r"output.{}.1.\2"),
        )
    ),
]
_RULES = [
    *_BIFPN_RULES,
    *RESNET_RULES,
    *(
        (rf"backbone\.fpn_{part}{level}\.(weight|bias)", rf"pyramid.{part}.{level - 3}.\1")
        for part in ("lateral", "output")
        for level in (3, 4, 5)
    ),
    (r"backbone\.top_block\.(p6|p7)\.(weight|bias)", r"pyramid.\1.\2"),
    (rf"{_HEAD}cls_tower\.(\d+)\.(weight|bias)", r"head.class_tower.\1.\2"),
    (rf"{_HEAD}bbox_tower\.(\d+)\.(weight|bias)", r"head.box_tower.\1.\2"),
    (rf"{_HEAD}cls_logits\.(weight|bias)", r"head.class_logits.\1"),
    (rf"{_HEAD}bbox_pred\.(weight|bias)", r"head.box_ltrb.\1"),
    (rf"{_HEAD}ctrness\.(weight|bias)", r"head.centerness.\1"),
    (rf"{_HEAD}scales\.(\d+)\.scale", r"head.scales.\1"),
    (r"controller\.(weight|bias)", r"head.controller.\1"),
    (rf"mask_branch\.(refine|tower)\.(\d+)\.([01])\.{LEAF}", r"mask_branch.\1.\2.\3.\4"),
    (r"mask_branch\.tower\.(\d+)\.(weight|bias)", r"mask_branch.tower.\1.\2"),
    (rf"mask_branch\.seg_head\.(\d+)\.([01])\.{LEAF}", r"mask_branch.semantic_tower.\1.\2.\3"),
    (r"mask_branch\.logits\.(weight|bias)", r"mask_branch.semantic_logits.\1"),
]
_DERIVED = {
    r"pixel_(mean|std)": "defined by the backbone's style",
    r"mask_head\.sizes_of_interest": "computed with the locations",
    r"mask_head\._iter": "step counter of BoxInst's warm-up",
}


def convert_adelaidet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames AdelaiDet's tensors (``model``); those that condseg computes itself are left out.

    Raises:
        ValueError: an unknown name.
    """
    renamed = rename(state, _RULES, _DERIVED, "AdelaiDet's CondInst")
    return with_counters(join_scales(renamed))


def join_scales(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Joins the scales of the levels, one tensor each in other projects, to one vector."""
    parts = sorted(key for key in state if key.startswith("head.scales."))
    joined = {key: tensor for key, tensor in state.items() if key not in parts}
    if parts:
        joined["head.scales"] = torch.cat([state[key].reshape(1) for key in parts])
    return joined
