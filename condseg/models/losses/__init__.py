"""Assignment and losses."""

from condseg.models.losses.base import DenseLoss
from condseg.models.losses.criterion import Criterion
from condseg.models.losses.fcos import FCOSLoss
from condseg.models.losses.masks import MaskLoss
from condseg.models.losses.semantic import SemanticLoss
from condseg.models.losses.soft_labels import SoftLabelLoss

__all__ = ["Criterion", "DenseLoss", "FCOSLoss", "MaskLoss", "SemanticLoss", "SoftLabelLoss"]
