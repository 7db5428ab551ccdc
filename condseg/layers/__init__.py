"""The dynamic-convolution family; it knows nothing of detection and works in any network."""

from condseg.layers.condconv import CondConv1d, CondConv2d, CondConv3d
from condseg.layers.convert import Conversion, to_dynamic
from condseg.layers.deform import DeformConv2d
from condseg.layers.dfn import (
    DynamicConv1d,
    DynamicConv2d,
    DynamicConv3d,
    DynamicLocalFilter2d,
)
from condseg.layers.dmnet import DynamicContextFilter2d, DynamicMultiScaleFilter2d
from condseg.layers.dyconv import DyConv1d, DyConv2d, DyConv3d
from condseg.layers.dynet import DyNetConv1d, DyNetConv2d, DyNetConv3d
from condseg.layers.hdfnet import (
    DenseTransport2d,
    DynamicDilatedFilter2d,
    DynamicDilatedPyramid2d,
    hybrid_enhanced_loss,
)
from condseg.layers.odconv import ODConv1d, ODConv2d, ODConv3d
from condseg.layers.parts import lower_temperature, set_temperature
from condseg.layers.plain import ConvFactory
from condseg.layers.slot import ConvSlot
from condseg.layers.static import to_static

__all__ = [
    "CondConv1d",
    "CondConv2d",
    "CondConv3d",
    "ConvFactory",
    "ConvSlot",
    "Conversion",
    "DeformConv2d",
    "DenseTransport2d",
    "DyConv1d",
    "DyConv2d",
    "DyConv3d",
    "DyNetConv1d",
    "DyNetConv2d",
    "DyNetConv3d",
    "DynamicContextFilter2d",
    "DynamicConv1d",
    "DynamicConv2d",
    "DynamicConv3d",
    "DynamicDilatedFilter2d",
    "DynamicDilatedPyramid2d",
    "DynamicLocalFilter2d",
    "DynamicMultiScaleFilter2d",
    "ODConv1d",
    "ODConv2d",
    "ODConv3d",
    "hybrid_enhanced_loss",
    "lower_temperature",
    "set_temperature",
    "to_dynamic",
    "to_static",
]
