"""Networks small enough for a test, and batches for them."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from condseg.models import FPN, Backbone, CondInst, FCOSHead, RTMDetHead, build_condinst
from condseg.structures import Batch, ImageInfo, Size, Targets

SIZE = (64, 96)
BOXES = ((4, 4, 40, 40), (30, 10, 90, 60), (50, 30, 66, 44))
RTMDET: dict[str, Any] = {
    "head": partial(RTMDetHead, tower_convs=1),
    "channels": 24,
    "pyramid": partial(FPN, num_levels=3),
}
"""RTMDet-Ins's head and levels, as arguments of :func:`tiny_condinst`."""


def tiny_backbone(name: str = "resnet18", **options: Any) -> Backbone:
    """A narrow ResNet without weights."""
    return Backbone(name, **{"weights": None, "width": 8, "stem_width": 8} | options)


def tiny_condinst(backbone: Backbone | None = None, **options: Any) -> CondInst:
    """A narrow network of 3 classes whose untrained predictions differ and reach the thresholds."""
    torch.manual_seed(0)
    parts: dict[str, Any] = {
        "num_classes": 3,
        "channels": 64,
        "head": partial(FCOSHead, tower_convs=1),
        "mask_branch_channels": 8,
        "mask_branch_convs": 1,
    }
    backbone = backbone or tiny_backbone(freeze_stages=0, norm="batch")
    network = build_condinst(backbone, **parts | options)
    if isinstance(network.head, FCOSHead):
        nn.init.constant_(network.head.class_logits.bias, -1.0)
        nn.init.constant_(network.head.box_ltrb.bias, 1.5)
    if isinstance(network.head, RTMDetHead):
        for convs in (network.head.class_logits, network.head.box_ltrb, network.head.controller):
            for conv in convs:
                nn.init.normal_(conv.weight, std=0.2)
        for conv in network.head.class_logits:
            nn.init.constant_(conv.bias, -1.0)
    return network


def rectangles(*boxes: tuple[int, int, int, int], size: Size = SIZE) -> Targets:
    """One object per box, which it fills; classes 0, 1, 2, 0, ..."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = True
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Targets(corners, torch.arange(len(boxes)) % 3, masks)


def noise(count: int, size: Size = SIZE) -> Tensor:
    """Images."""
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8)


def batch_of(images: Tensor, *targets: Targets) -> Batch:
    """A batch without padding."""
    size = (images.shape[2], images.shape[3])
    infos = tuple(ImageInfo(i, "", size, size) for i in range(len(images)))
    return Batch(images, targets, infos)
