"""What is compared: each variant overrides a few keys of one configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CONV = "model.network.backbone.conv"
WHERE = "model.network.backbone.where"
FILTER = "model.network.mask_filter"
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


def _backbone(label: str, layer: str, num_experts: int) -> Variant:
    conv = {"class_path": f"condseg.layers.{layer}", "init_args": {"num_experts": num_experts}}
    # The same convolutions for all: those of strides 8 to 32, depthwise ones included. CondConv's
    # paper replaces only those of the last three blocks.
    return Variant(label, "backbone", {CONV: conv, WHERE: [3, 4, 5]})


def _mask_filter(label: str, layer: str) -> Variant:
    return Variant(label, "mask filter", {FILTER: {"class_path": f"condseg.layers.{layer}"}})


VARIANTS: dict[str, Variant] = {
    BASE: Variant("static", "none", {}),
    "condconv": _backbone("CondConv", "CondConv2d", 8),
    "dyconv": _backbone("DyConv", "DyConv2d", 4),
    "dynet": _backbone("DyNet", "DyNetConv2d", 4),
    "odconv_1x": _backbone("ODConv 1x", "ODConv2d", 1),
    "odconv_4x": _backbone("ODConv 4x", "ODConv2d", 4),
    "dfn": _mask_filter("DFN filter", "DynamicLocalFilter2d"),
    "dmnet": _mask_filter("DMNet filter", "DynamicMultiScaleFilter2d"),
    "hdfnet": _mask_filter("HDFNet filter", "DynamicDilatedPyramid2d"),
}

CLAIMS: tuple[tuple[str, str, str], ...] = (
    *((name, BASE, f"{v.label} beats static") for name, v in VARIANTS.items() if name != BASE),
    ("odconv_4x", "odconv_1x", "ODConv gains by more experts"),
    ("odconv_1x", "condconv", "ODConv 1x beats CondConv"),
    ("odconv_1x", "dyconv", "ODConv 1x beats DyConv"),
)
"""(better, worse, claim): the last three are from ODConv's paper, the others from each layer's."""


def arguments(variant: Variant) -> list[str]:
    """Arguments of the command line that configure the network as this variant.

    Both options are set to null first: otherwise arguments of a layer that the configuration names
    would be passed to the layer that replaces it.
    """
    keys = [(CONV, None), (FILTER, None), *variant.overrides.items()]
    return [f"--{key}={json.dumps(value)}" for key, value in keys]
