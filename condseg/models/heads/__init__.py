"""Dense heads."""

from condseg.models.heads.base import DenseHead, HeadFactory
from condseg.models.heads.fcos import FCOSHead
from condseg.models.heads.rtmdet import RTMDetHead

__all__ = ["DenseHead", "FCOSHead", "HeadFactory", "RTMDetHead"]
