"""The detector: network, criterion and post-process."""

from condseg.models.backbones import Backbone
from condseg.models.build import build_condinst
from condseg.models.condinst import CondInst
from condseg.models.heads import DenseHead, FCOSHead, RTMDetHead
from condseg.models.losses import Criterion, FCOSLoss, MaskLoss, SemanticLoss, SoftLabelLoss
from condseg.models.mask import DepthEncoder, DynamicMaskHead, MaskBranch
from condseg.models.optimize import optimize_for_inference
from condseg.models.postprocess import PostProcess
from condseg.models.pyramids import FPN, BiFPN

__all__ = [
    "FPN",
    "Backbone",
    "BiFPN",
    "CondInst",
    "Criterion",
    "DenseHead",
    "DepthEncoder",
    "DynamicMaskHead",
    "FCOSHead",
    "FCOSLoss",
    "MaskBranch",
    "MaskLoss",
    "PostProcess",
    "RTMDetHead",
    "SemanticLoss",
    "SoftLabelLoss",
    "build_condinst",
    "optimize_for_inference",
]
