"""The backbone of a checkpoint of a classifier or a detector."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import Tensor

from condseg.models.backbones.detectron2 import RESNET_RULES, with_counters
from condseg.models.backbones.files import rename

log = logging.getLogger(__name__)

_TOP_LEVEL = "backbone.bottom_up.res6."
"""Below AdelaiDet's BiFPN, its first level is in the same module as the ResNet."""
_MOBILENET_DEPTHS = (1, 2, 3, 4, 3, 3, 1)
_EXPANDING = {"0.0": "conv_pw", "0.1": "bn1", "1.0": "conv_dw", "1.1": "bn2"}
_EXPANDING |= {"2": "conv_pwl", "3": "bn3"}
_FIRST = {"0.0": "conv_dw", "0.1": "bn1", "1": "conv_pw", "2": "bn2"}


def backbone_state(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The tensors of the backbone, by the names of torchvision's ResNets and timm's networks.

    Classifiers of torchvision, timm and ODConv, detectors of mmdetection (also ODConv's Mask
    R-CNN) and AdelaiDet, and condseg's checkpoints are supported. Tensors outside of a detector's
    backbone are logged as left out.
    """
    for prefix in ("network.backbone.network.", "backbone.bottom_up.", "backbone."):
        inside = {
            key: tensor
            for key, tensor in state.items()
            if key.startswith(prefix) and not key.startswith(_TOP_LEVEL)
        }
        if inside:
            for key in state:
                if key not in inside:
                    log.info("%s: %s left out: outside of the backbone", source, key)
            if prefix == "backbone.bottom_up.":
                renamed = rename(inside, RESNET_RULES, {}, "detectron2's ResNet")
                inside, prefix = with_counters(renamed), "backbone.network."
            return {key.removeprefix(prefix): tensor for key, tensor in inside.items()}
    return dict(state)


def is_dynamic(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of a network with ODConv or deformable convolutions."""
    return any(key.endswith((".attention.channel_fc.weight", ".offset.weight")) for key in state)


def timm_mobilenet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the tensors of torchvision's and ODConv's MobileNetV2 to timm's names."""
    places = [f"blocks.{s}.{i}" for s, depth in enumerate(_MOBILENET_DEPTHS) for i in range(depth)]
    names = {"features.0.0": "conv_stem", "features.0.1": "bn1", "classifier.1": "classifier"}
    names |= {"features.18.0": "conv_head", "features.18.1": "bn2"}
    for number, place in enumerate(places, start=1):
        inside = _FIRST if number == 1 else _EXPANDING
        names |= {f"features.{number}.conv.{old}": f"{place}.{new}" for old, new in inside.items()}
    renamed = {}
    for key, tensor in state.items():
        old = next((name for name in names if key.startswith(f"{name}.")), "")
        renamed[names.get(old, "") + key.removeprefix(old)] = tensor
    return renamed
