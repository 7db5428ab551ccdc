"""Detectors of other projects: recognizes the project, converts names and settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from condseg.zoo.adelaidet import convert_adelaidet
from condseg.zoo.architecture import network_arguments
from condseg.zoo.mmdetection import convert_mmdetection
from condseg.zoo.rtmdet import POSTPROCESS, convert_rtmdet, rtmdet_arguments


@dataclass(frozen=True, slots=True)
class Detector:
    """A checkpoint of another project by condseg's names.

    Attributes:
        source: the project.
        network: arguments of ``build_condinst``, plain data.
        postprocess: arguments of ``PostProcess``, plain data.
        state: all tensors of the network.
        sides: pixels of the short side of an image at evaluation, and max of the long side.
    """

    source: str
    network: dict[str, Any]
    postprocess: dict[str, Any]
    state: dict[str, Tensor]
    sides: tuple[int, int] = (800, 1333)


def import_detector(state: Mapping[str, Tensor], source: str) -> Detector:
    """Recognizes the project by the names of the tensors, and converts the detector.

    As in mmdetection, the threshold of its models applies to the class score alone. mmdetection's
    final scores are the squares of condseg's, in the same order.

    Raises:
        ValueError: not a CondInst, BoxInst or RTMDet-Ins of a supported project; the message says
            what the file seems to be.
    """
    if any(key.startswith("bbox_head.rtm_kernel.") for key in state):
        of = f"mmdetection's {source}"
        renamed = convert_rtmdet(state, of)
        network = rtmdet_arguments(renamed, of)
        return Detector("mmdetection", network, dict(POSTPROCESS), renamed, (640, 640))
    if any(key.startswith("proposal_generator.fcos_head.") for key in state):
        project, style, postprocess = "AdelaiDet", "caffe", {}
        renamed = convert_adelaidet(state)
    elif any(key.startswith("mask_head.mask_feature_head.") for key in state):
        project, style = "mmdetection", "torchvision"
        postprocess = {"threshold_with_centerness": False}
        renamed = convert_mmdetection(state)
    else:
        raise ValueError(f"weights: {source} is {_what_else(state)}")
    network = network_arguments(renamed, style, f"{project}'s {source}")
    return Detector(project, network, postprocess, renamed)


def _what_else(state: Mapping[str, Tensor]) -> str:
    by_itself = "use it as --model.network.backbone.weights"
    if any(key.startswith("network.") for key in state):
        return "already a checkpoint of condseg"
    if any(key.startswith(("roi_head.", "rpn_head.")) for key in state):
        return f"another detector, of which only the backbone is supported: {by_itself}"
    if any(key.startswith("bbox_head.rtm_cls.") for key in state):
        return (
            "an RTMDet that detects boxes alone (it has no bbox_head.rtm_kernel); wanted is an "
            f"RTMDet-Ins, of which rtmdet_ins_m is one. Of this file, the backbone is supported: "
            f"{by_itself}"
        )
    if {"fc.weight", "classifier.weight", "classifier.1.weight"} & state.keys():
        return f"a classifier; {by_itself}"
    return (
        "not a CondInst, BoxInst or RTMDet-Ins of AdelaiDet or mmdetection; its tensors are "
        f"{', '.join(list(state)[:3])}, ..."
    )
