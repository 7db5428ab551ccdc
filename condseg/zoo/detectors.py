"""Whole detectors of other projects: whose a checkpoint is, and what it is here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from condseg.zoo.adelaidet import convert_adelaidet
from condseg.zoo.architecture import network_arguments
from condseg.zoo.mmdetection import convert_mmdetection


@dataclass(frozen=True, slots=True)
class Detector:
    """A checkpoint of another project under our names.

    Attributes:
        source: whose it is.
        network: arguments of ``CondInst``, plain data.
        postprocess: arguments of ``PostProcess``, plain data.
        state: all tensors of the network.
    """

    source: str
    network: dict[str, Any]
    postprocess: dict[str, Any]
    state: dict[str, Tensor]


def import_detector(state: Mapping[str, Tensor], source: str) -> Detector:
    """Recognises the project by its names, and takes its detector over.

    mmdetection compares the class score alone with the threshold, and so do its models here; the
    scores it shows are the squares of ours, which changes no order.

    Args:
        state: as :func:`condseg.models.backbones.files.read_state` gives it.
        source: the file, for messages.

    Raises:
        ValueError: no CondInst or BoxInst of a project that is known; the message says what the
            file seems to be.
    """
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
    by_itself = "give it as --model.network.backbone.weights"
    if any(key.startswith("network.") for key in state):
        return "a checkpoint of condseg already"
    if any(key.startswith(("roi_head.", "rpn_head.")) for key in state):
        return f"a detector of another kind, of which the backbone alone fits: {by_itself}"
    if {"fc.weight", "classifier.weight", "classifier.1.weight"} & state.keys():
        return f"a classifier; {by_itself}"
    return (
        "no CondInst or BoxInst of AdelaiDet or mmdetection; its tensors are called "
        f"{', '.join(list(state)[:3])}, ..."
    )
