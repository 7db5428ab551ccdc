"""Feature pyramids."""

from condseg.models.pyramids.base import Pyramid, PyramidFactory
from condseg.models.pyramids.bifpn import BiFPN
from condseg.models.pyramids.fpn import FPN

__all__ = ["FPN", "BiFPN", "Pyramid", "PyramidFactory"]
