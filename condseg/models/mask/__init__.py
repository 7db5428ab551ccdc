"""The mask branch and the dynamic mask head."""

from condseg.models.mask.branch import MaskBranch
from condseg.models.mask.depth import DepthEncoder
from condseg.models.mask.head import DynamicMaskHead

__all__ = ["DepthEncoder", "DynamicMaskHead", "MaskBranch"]
