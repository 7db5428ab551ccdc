"""The detector: network, criterion and post-process."""

from condseg.models.backbones.backbone import Backbone
from condseg.models.condinst import CondInst
from condseg.models.losses.criterion import Criterion
from condseg.models.postprocess import PostProcess

__all__ = ["Backbone", "CondInst", "Criterion", "PostProcess"]
