"""Networks small enough for a test, and batches and losses for them."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from condseg.models import (
    FPN,
    Backbone,
    CondInst,
    Criterion,
    FCOSHead,
    MaskLoss,
    RTMDetHead,
    SemanticLoss,
    build_condinst,
)
from condseg.structures import Batch, ImageInfo, Size, Targets
from condseg.zoo.checkpoint import build

CONFIGS = Path(__file__).parents[2] / "configs"
SIZE = (64, 96)
BOXES = ((8, 8, 40, 48), (48, 16, 92, 60), (50, 30, 66, 44))
"""The third lies in the second."""

FCOS: dict[str, Any] = {"head": partial(FCOSHead, tower_convs=1), "channels": 64}
RTMDET: dict[str, Any] = {
    "head": partial(RTMDetHead, tower_convs=1),
    "channels": 24,
    "pyramid": partial(FPN, num_levels=3),
}
each_head = pytest.mark.parametrize("options", [FCOS, RTMDET], ids=["fcos", "rtmdet"])
"""Arguments of :func:`tiny_condinst` for each head."""


def tiny_backbone(name: str = "resnet18", **options: Any) -> Backbone:
    """A narrow ResNet without weights."""
    return Backbone(name, **{"weights": None, "width": 8, "stem_width": 8} | options)


def tiny_condinst(backbone: Backbone | None = None, **options: Any) -> CondInst:
    """A narrow, untrained network of 3 classes with detections above the default thresholds."""
    torch.manual_seed(0)
    backbone = backbone or tiny_backbone(freeze_stages=0, norm="batch")
    parts = FCOS | {"num_classes": 3, "mask_branch_channels": 8, "mask_branch_convs": 1}
    network = build_condinst(backbone, **parts | options)
    make_detections_(network)
    return network


def make_detections_(network: CondInst) -> None:
    """Changes an untrained head to have detections above the default thresholds."""
    head = network.head
    if isinstance(head, RTMDetHead):
        for conv in [*head.class_logits, *head.box_ltrb, *head.controller]:
            nn.init.normal_(conv.weight, std=0.2)
        for conv in head.class_logits:
            nn.init.constant_(conv.bias, -1.0)
    else:
        nn.init.constant_(head.class_logits.bias, -1.0)
        nn.init.constant_(head.box_ltrb.bias, 1.5)


@torch.no_grad()
def randomize_norms(network: nn.Module) -> None:
    """Statistics and affine parameters of batch norms as after training."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.2)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)


def rectangles(*boxes: tuple[int, int, int, int], size: Size = SIZE) -> Targets:
    """One object per box, which it fills; classes 0, 1, 2, 0, ..."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = True
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Targets(corners, torch.arange(len(boxes)) % 3, masks)


def noise(count: int, size: Size = SIZE) -> Tensor:
    """Random images."""
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8)


def batch_of(*counts: int, masks: bool = True) -> Batch:
    """Colored rectangles on gray: image i has the first ``counts[i]`` of ``BOXES``."""
    images = torch.full((len(counts), 3, *SIZE), 90, dtype=torch.uint8)
    targets = [rectangles(*BOXES[:count]) for count in counts]
    for image, target in zip(images, targets, strict=True):
        for k, mask in enumerate(target.masks):
            image[k % 3, mask] = 230 - 40 * k
        target.masks[:] &= masks
    infos = tuple(ImageInfo(i, "", SIZE, SIZE) for i in range(len(counts)))
    return Batch(images, tuple(targets), infos)


def criterion_of(network: CondInst, **mask_loss: Any) -> Criterion:
    """The criterion that fits the network."""
    semantic_loss = SemanticLoss() if network.mask_branch.has_semantic_branch else None
    return Criterion(network.head.default_loss(), MaskLoss(**mask_loss), semantic_loss)


def losses_of(network: CondInst, batch: Batch, **mask_loss: Any) -> dict[str, Tensor]:
    """The losses of the criterion that fits the network."""
    criterion = criterion_of(network, **mask_loss)
    dense = network(batch.images, batch.sizes, batch.depth)
    losses: dict[str, Tensor] = criterion(dense, batch, network.mask_logits)
    return losses


DEEPER = re.compile(r"rtmdet_ins_[smlx]|\w+_r101(_bifpn)?(_sem)?")
"""Of these configurations there are others that differ in depth alone."""
CONFIGURATIONS = [
    pytest.param(path.name, marks=[pytest.mark.slow] if DEEPER.fullmatch(path.stem) else [])
    for path in sorted(CONFIGS.glob("*.yaml"))
    if "network:" in path.read_text()
]
"""Those that choose a network."""


def configured(name: str) -> tuple[CondInst, dict[str, Any]]:
    """The narrowed, untrained network of a configuration, and the options of its mask loss."""
    names = ("quickstart.yaml", name) if "override of quickstart" in text_of(name) else (name,)
    model: dict[str, Any] = {}
    for file in names:
        _merge(model, yaml.safe_load(text_of(file))["model"])
    network = {"num_classes": 3, "mask_branch_channels": 8, "mask_branch_convs": 1}
    network |= model["network"]
    network["backbone"] |= {"weights": None}
    if network["backbone"]["name"].startswith("resnet"):
        network["backbone"] |= {"width": 8, "stem_width": 8}
        network |= {"channels": 64}
    torch.manual_seed(0)
    built, _ = build({"network": network, "postprocess": {}})
    make_detections_(built)
    data = [yaml.safe_load(text_of(file)).get("data", {}) for file in names]
    supervision = data[-1].get("supervision", "masks")
    return built, {"supervision": supervision} | model.get("mask_loss", {})


def text_of(name: str) -> str:
    return (CONFIGS / name).read_text()


def _merge(into: dict[str, Any], other: dict[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and "class_path" not in value:
            _merge(into.setdefault(key, {}), value)
        else:
            into[key] = value
