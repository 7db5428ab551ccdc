"""What RTMDet-Ins computes, plain and slow.

Written from the paper (arXiv 2212.07784) and mmdetection's public code, with the names of its
tensors, independently of condseg's modules.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from support.rtmdet_tensors import NORM, State
from torch import Tensor


def conv(state: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = state[f"{name}.conv.weight"]
    groups = x.shape[1] // weight.shape[1]
    x = F.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2, groups=groups)
    gain, bias, mean, var = (state[f"{name}.bn.{part}"][:, None, None] for part in NORM)
    y = (x - mean) / torch.sqrt(var + 1e-5) * gain + bias
    return y * torch.sigmoid(y)


def plain(state: State, name: str, x: Tensor) -> Tensor:
    return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"])


def csp(state: State, name: str, x: Tensor, residual: bool) -> Tensor:
    main = conv(state, f"{name}.main_conv", x)
    i = 0
    while f"{name}.blocks.{i}.conv1.conv.weight" in state:
        y = conv(state, f"{name}.blocks.{i}.conv1", main)
        y = conv(state, f"{name}.blocks.{i}.conv2.depthwise_conv", y)
        y = conv(state, f"{name}.blocks.{i}.conv2.pointwise_conv", y)
        main = main + y if residual else y
        i += 1
    x = torch.cat((main, conv(state, f"{name}.short_conv", x)), 1)
    if f"{name}.attention.fc.weight" in state:
        gate = plain(state, f"{name}.attention.fc", x.mean((2, 3), keepdim=True))
        x = x * (gate / 6 + 0.5).clamp(0, 1)
    return conv(state, f"{name}.final_conv", x)


def backbone(state: State, x: Tensor) -> list[Tensor]:
    for i in range(3):
        x = conv(state, f"backbone.stem.{i}", x, stride=2 if i == 0 else 1)
    maps = []
    for stage in range(1, 5):
        name = f"backbone.stage{stage}"
        x = conv(state, f"{name}.0", x, stride=2)
        if stage == 4:
            x = conv(state, f"{name}.1.conv1", x)
            pools = [F.max_pool2d(x, k, 1, k // 2) for k in (5, 9, 13)]
            x = conv(state, f"{name}.1.conv2", torch.cat([x, *pools], 1))
        x = csp(state, f"{name}.{2 if stage == 4 else 1}", x, residual=stage < 4)
        maps.append(x)
    return maps[1:]


def neck(state: State, maps: list[Tensor]) -> list[Tensor]:
    c3, c4, c5 = maps
    t5 = conv(state, "neck.reduce_layers.0", c5)
    up = t5.repeat_interleave(2, 2).repeat_interleave(2, 3)
    m4 = csp(state, "neck.top_down_blocks.0", torch.cat((up, c4), 1), residual=False)
    t4 = conv(state, "neck.reduce_layers.1", m4)
    up = t4.repeat_interleave(2, 2).repeat_interleave(2, 3)
    n3 = csp(state, "neck.top_down_blocks.1", torch.cat((up, c3), 1), residual=False)
    down = conv(state, "neck.downsamples.0", n3, stride=2)
    n4 = csp(state, "neck.bottom_up_blocks.0", torch.cat((down, t4), 1), residual=False)
    down = conv(state, "neck.downsamples.1", n4, stride=2)
    n5 = csp(state, "neck.bottom_up_blocks.1", torch.cat((down, t5), 1), residual=False)
    return [conv(state, f"neck.out_convs.{i}", x) for i, x in enumerate((n3, n4, n5))]


@dataclass
class Dense:
    """Predictions at the locations of one image, level after level."""

    scores: Tensor  # (L, K)
    boxes: Tensor  # (L, 4) xyxy, not clipped
    kernels: Tensor  # (L, 169)
    priors: Tensor  # (L, 3) x, y, stride
    levels: list[int]  # locations of each level
    mask_features: Tensor  # (8, H/8, W/8)


def dense(state: State, x: Tensor) -> Dense:
    """Of one normalized image (1, 3, H, W)."""
    maps = neck(state, backbone(state, x))
    scores, boxes, kernels, priors = [], [], [], []
    for level, features in enumerate(maps):
        stride = 8 * 2**level
        towers = {}
        for tower in ("cls_convs", "reg_convs", "kernel_convs"):
            y = features
            for i in range(2):
                y = conv(state, f"bbox_head.{tower}.{level}.{i}", y)
            towers[tower] = y
        outputs = [
            plain(state, f"bbox_head.{name}.{level}", towers[tower])[0].flatten(1).T
            for name, tower in (
                ("rtm_cls", "cls_convs"),
                ("rtm_reg", "reg_convs"),
                ("rtm_kernel", "kernel_convs"),
            )
        ]
        height, width = features.shape[2:]
        grid = [(j * stride, i * stride, stride) for i in range(height) for j in range(width)]
        prior = torch.tensor(grid, dtype=torch.float32)
        distance = outputs[1].clamp(min=0) * stride
        corners = (prior[:, :2] - distance[:, :2], prior[:, :2] + distance[:, 2:])
        scores.append(outputs[0].sigmoid())
        boxes.append(torch.cat(corners, 1))
        kernels.append(outputs[2])
        priors.append(prior)
    size = maps[0].shape[2:]
    joined = [F.interpolate(m, size=size, mode="bilinear", align_corners=False) for m in maps[1:]]
    y = plain(state, "bbox_head.mask_head.fusion_conv", torch.cat([maps[0], *joined], 1))
    for i in range(4):
        y = conv(state, f"bbox_head.mask_head.stacked_convs.{i}", y)
    y = plain(state, "bbox_head.mask_head.projection", y)
    counts = [len(p) for p in priors]
    parts = [torch.cat(values) for values in (scores, boxes, kernels, priors)]
    return Dense(*parts, counts, y[0])


def mask_logits(features: Tensor, kernel: Tensor, prior: Tensor) -> Tensor:
    """The mask of one instance at stride 8, pixel by pixel of the formula."""
    height, width = features.shape[1:]
    x, y, stride = prior.tolist()
    columns = ((x - 8 * torch.arange(width)) / (8 * stride)).expand(height, width)
    rows = ((y - 8 * torch.arange(height)) / (8 * stride))[:, None].expand(height, width)
    z = torch.cat((columns[None], rows[None], features))
    weights, biases = kernel[:152], kernel[152:]
    for i, (out, into) in enumerate(((8, 10), (8, 8), (1, 8))):
        weight, weights = weights[: out * into].view(out, into), weights[out * into :]
        bias, biases = biases[:out], biases[out:]
        z = torch.einsum("oi,ihw->ohw", weight, z) + bias[:, None, None]
        z = z.clamp(min=0) if i < 2 else z
    return z[0]


@dataclass
class Result:
    """Of one image, in its pixels, best first."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor
    logits: Tensor


def predict(state: State, image: Tensor, original: tuple[int, int]) -> Result:
    """Prediction of an image (3, h, w) RGB 0..255 whose long side is that of the network's input.

    Args:
        state: of the checkpoint.
        image: after resizing.
        original: (height, width) before it, in which the result is.
    """
    height, width = image.shape[1:]
    side = max(height, width)
    padded = torch.full((3, side, side), 114.0)
    padded[:, :height, :width] = image.flip(0).float()
    mean = torch.tensor([103.53, 116.28, 123.675])[:, None, None]
    std = torch.tensor([57.375, 57.12, 58.395])[:, None, None]
    found = dense(state, ((padded - mean) / std)[None])
    chosen: list[tuple[float, int, int]] = []
    first = 0
    for count in found.levels:
        level = [
            (score, first + i, label)
            for i, row in enumerate(found.scores[first : first + count].tolist())
            for label, score in enumerate(row)
            if score > 0.05
        ]
        chosen += sorted(level, reverse=True)[:1000]
        first += count
    boxes = found.boxes.clamp(0, side)
    kept: list[tuple[float, int, int]] = []
    for score, i, label in sorted(chosen, reverse=True):
        others = boxes[[j for _, j, other in kept if other == label]]
        if bool((_iou(boxes[i], others) <= 0.6).all()):
            kept.append((score, i, label))
    kept = kept[:100]
    factor = torch.tensor([original[1] / width, original[0] / height] * 2)
    logits = [
        mask_logits(found.mask_features, found.kernels[i], found.priors[i]) for _, i, _ in kept
    ]
    small = torch.stack(logits)
    large = F.interpolate(small[None], scale_factor=8, mode="bilinear", align_corners=False)
    size = [math.ceil(side * original[1] / width)] * 2
    large = F.interpolate(large, size, mode="bilinear", align_corners=False)[0]
    return Result(
        boxes[[i for _, i, _ in kept]] * factor,
        torch.tensor([score for score, _, _ in kept]),
        torch.tensor([label for _, _, label in kept]),
        large[:, : original[0], : original[1]].sigmoid() > 0.5,
        large[:, : original[0], : original[1]],
    )


def _iou(box: Tensor, others: Tensor) -> Tensor:
    """Of a box (4,) with others (N, 4)."""
    low, high = torch.maximum(box[:2], others[:, :2]), torch.minimum(box[2:], others[:, 2:])
    both = (high - low).clamp(min=0).prod(1)
    return both / ((box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(1) - both)
