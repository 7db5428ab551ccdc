"""Converts the names of mmdetection's CondInst and BoxInst to condseg's.

Their ResNets are torchvision-style: RGB, stride in the 3x3 convolutions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from condseg.models.backbones.detectron2 import with_counters
from condseg.models.backbones.files import rename
from condseg.zoo.adelaidet import join_scales

_MASK = r"mask_head\.mask_feature_head\."


def convert_mmdetection(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames mmdetection's tensors (``state_dict``).

    Raises:
        ValueError: an unknown name.
    """
    depths = [int(m[1]) for k in state if (m := re.match(rf"{_MASK}conv_branch\.(\d+)\.", k))]
    renamed = rename(state, _rules(1 + max(depths, default=-1)), {}, "mmdetection's CondInst")
    return with_counters(join_scales(renamed))


def _rules(mask_convs: int) -> list[tuple[str, str]]:
    """The mask branch's last convolution is numbered after its ``mask_convs`` blocks."""
    rules = [
        (r"backbone\.(.+)", r"backbone.network.\1"),
        (r"neck\.lateral_convs\.([012])\.conv\.(.+)", r"pyramid.lateral.\1.\2"),
        (r"neck\.fpn_convs\.([012])\.conv\.(.+)", r"pyramid.output.\1.\2"),
        (r"neck\.fpn_convs\.3\.conv\.(.+)", r"pyramid.p6.\1"),
        (r"neck\.fpn_convs\.4\.conv\.(.+)", r"pyramid.p7.\1"),
        (r"bbox_head\.conv_cls\.(.+)", r"head.class_logits.\1"),
        (r"bbox_head\.conv_reg\.(.+)", r"head.box_ltrb.\1"),
        (r"bbox_head\.conv_centerness\.(.+)", r"head.centerness.\1"),
        (r"bbox_head\.controller\.(.+)", r"head.controller.\1"),
        (r"bbox_head\.scales\.(\d+)\.scale", r"head.scales.\1"),
        (rf"{_MASK}convs_all_levels\.(\d+)\.conv\1\.conv\.(.+)", r"mask_branch.refine.\1.0.\2"),
        (rf"{_MASK}convs_all_levels\.(\d+)\.conv\1\.bn\.(.+)", r"mask_branch.refine.\1.1.\2"),
        (rf"{_MASK}conv_branch\.(\d+)\.conv\.(.+)", r"mask_branch.tower.\1.0.\2"),
        (rf"{_MASK}conv_branch\.(\d+)\.bn\.(.+)", r"mask_branch.tower.\1.1.\2"),
        (rf"{_MASK}conv_pred\.(.+)", rf"mask_branch.tower.{mask_convs}.\1"),
    ]
    return rules + [
        (rf"bbox_head\.{theirs}\.{i}\.{part}\.(.+)", rf"head.{ours}.{3 * i + place}.\1")
        for theirs, ours in (("cls_convs", "class_tower"), ("reg_convs", "box_tower"))
        for i in range(10)
        for place, part in enumerate(("conv", "gn"))
    ]
