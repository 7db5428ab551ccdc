"""The detector: network, criterion and post-process."""

from condseg.models.backbones.backbone import Backbone
from condseg.models.build import build_condinst
from condseg.models.condinst import CondInst
from condseg.models.heads.base import DenseHead
from condseg.models.heads.fcos import FCOSHead
from condseg.models.heads.rtmdet import RTMDetHead
from condseg.models.losses.criterion import Criterion
from condseg.models.losses.fcos import FCOSLoss
from condseg.models.losses.masks import MaskLoss
from condseg.models.losses.semantic import SemanticLoss
from condseg.models.losses.soft_labels import SoftLabelLoss
from condseg.models.mask.branch import ConcatMaskBranch, MaskBranch
from condseg.models.mask.depth import DepthEncoder
from condseg.models.mask.head import DynamicMaskHead
from condseg.models.mask.rtmdet import RTMDetMaskHead
from condseg.models.optimize import optimize_for_inference
from condseg.models.postprocess import PostProcess
from condseg.models.pyramids.bifpn import BiFPN
from condseg.models.pyramids.fpn import FPN
from condseg.models.pyramids.pafpn import PAFPN

__all__ = [
    "FPN",
    "PAFPN",
    "Backbone",
    "BiFPN",
    "ConcatMaskBranch",
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
    "RTMDetMaskHead",
    "SemanticLoss",
    "SoftLabelLoss",
    "build_condinst",
    "optimize_for_inference",
]
