"""What is compared: each variant overrides a few keys of one configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CONV = "model.network.backbone.conv"
WHERE = "model.network.backbone.where"
FILTER = "model.network.mask_filter"
LAYERS = "studies.comparison.squeeze"
"""Module of this study's own layers, which a configuration may name only if that is allowed."""
BASE = "static"


@dataclass(frozen=True, slots=True)
class Variant:
    """A choice of layers.

    Attributes:
        label: its name in table and chart.
        part: of the network that is dynamic.
        overrides: key of the command line -> plain value; the default network is static.
    """

    label: str
    part: str
    overrides: Mapping[str, Any]


def _backbone(layer: str, **options: Any) -> dict[str, Any]:
    # The same convolutions for all: those of strides 8 to 32, depthwise ones included. CondConv's
    # paper replaces only those of the last three blocks.
    return {CONV: {"class_path": layer, "init_args": options}, WHERE: [3, 4, 5]}


def _mask_filter(layer: str) -> dict[str, Any]:
    return {FILTER: {"class_path": f"condseg.layers.{layer}"}}


ODCONV_4X = _backbone("condseg.layers.ODConv2d", num_experts=4)
HDFNET = _mask_filter("DynamicDilatedPyramid2d")

VARIANTS: dict[str, Variant] = {
    BASE: Variant("static", "none", {}),
    "odconv_1x": Variant(
        "ODConv 1x", "backbone", _backbone("condseg.layers.ODConv2d", num_experts=1)
    ),
    "odconv_4x": Variant("ODConv 4x", "backbone", ODCONV_4X),
    "condconv": Variant(
        "CondConv", "backbone", _backbone("condseg.layers.CondConv2d", num_experts=8)
    ),
    "dyconv": Variant("DyConv", "backbone", _backbone("condseg.layers.DyConv2d", num_experts=4)),
    "dynet": Variant("DyNet", "backbone", _backbone("condseg.layers.DyNetConv2d", num_experts=4)),
    "se": Variant("squeeze and excitation", "gates", _backbone(f"{LAYERS}.SEConv2d")),
    "dfn": Variant("DFN filter", "mask filter", _mask_filter("DynamicLocalFilter2d")),
    "dmnet": Variant("DMNet filter", "mask filter", _mask_filter("DynamicMultiScaleFilter2d")),
    "hdfnet": Variant("HDFNet filter", "mask filter", HDFNET),
    "odconv_4x_hdfnet": Variant("ODConv 4x + HDFNet filter", "both", ODCONV_4X | HDFNET),
}


def arguments(variant: Variant) -> list[str]:
    """Arguments of the command line that configure the network as this variant.

    Both options are set to null first: otherwise arguments of a layer that the configuration names
    would be passed to the layer that replaces it.
    """
    keys = [(CONV, None), (FILTER, None), *variant.overrides.items()]
    return [f"--{key}={json.dumps(value)}" for key, value in keys]
