"""RTMDet-Ins beside CondInst and torchvision's Mask R-CNN, all on one image of 640 x 640."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from condseg.inference.predictor import Predictor
from condseg.models import (
    PAFPN,
    Backbone,
    ConcatMaskBranch,
    RTMDetHead,
    RTMDetMaskHead,
    build_condinst,
)
from studies.benchmarks import subjects
from studies.benchmarks.compare import Comparison, Line
from studies.benchmarks.inputs import CLASSES, Shapes, batch
from studies.measure import Run

SIZES = {"s": (128, 1), "m": (192, 2)}
"""Channels, and blocks of the pyramid's layers."""
SIDE = 640


def comparisons(shapes: Shapes, device: torch.device) -> list[Comparison]:
    """Whole evaluations; the bars are to be no slower."""
    lines = [
        Line(
            f"rtmdet_ins_{size} against {base}", f"rtmdet_ins_{size}", base, faster=1.0, same=False
        )
        for size in SIZES
        for base in ("condinst_r50", "torchvision")
    ]
    at = replace(shapes, image=(min(SIDE, shapes.image[1]),) * 2)
    run = partial(evaluations, at, device)
    return [Comparison(f"RTMDet-Ins, {at.image[0]}x{at.image[1]}", run, tuple(lines), memory=False)]


def evaluations(shapes: Shapes, device: torch.device) -> dict[str, Run]:
    """From the image to masks of its size."""
    one = batch(shapes.image, 1)
    condinst = subjects.predictor(subjects.condinst(shapes, device), shapes, device)
    runs: dict[str, Run] = {"condinst_r50": partial(condinst.predict, one)}
    for size in SIZES:
        runs[f"rtmdet_ins_{size}"] = partial(rtmdet(size, shapes, device).predict, one)
    return {**runs, "torchvision": subjects.mask_rcnn(shapes, device)}


def rtmdet(size: str, shapes: Shapes, device: torch.device) -> Predictor:
    """A network of random weights, arranged as :func:`subjects.condinst`."""
    torch.manual_seed(0)
    channels, blocks = SIZES[size]
    options = {"norm": "batch", "freeze_stages": 0, "letterbox": True}
    network = build_condinst(
        Backbone(f"cspnext_{size}", weights=None, **options),  # type: ignore[arg-type]
        CLASSES,
        channels,
        partial(PAFPN, num_blocks=blocks),
        RTMDetHead,
        ConcatMaskBranch,
        RTMDetMaskHead,
        mask_branch_channels=channels,
    )
    head = network.head
    assert isinstance(head, RTMDetHead)
    with torch.no_grad():
        for conv in head.controller:
            conv.get_parameter("bias").copy_(subjects.rhombus(network.mask_head))
            conv.get_parameter("weight").mul_(0.1)
        for conv in head.box_ltrb:
            conv.get_parameter("bias").fill_(2.0)
    network.to(device).eval()
    images = batch(shapes.image, 1).images.to(device)
    subjects.calibrate_norms_(network, lambda: network(images, [shapes.image]))
    options = {"clip_before_nms": True, "mask_interpolation": "logits"}
    return subjects.predictor(network, shapes, device, **options)
