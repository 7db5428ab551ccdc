"""The tensors of mmdetection's RTMDet-Ins checkpoints, and the figures of its table.

Written from mmdetection's public configurations and code, independently of condseg's modules and
renaming.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

State = dict[str, Tensor]


@dataclass(frozen=True)
class Published:
    """A size by its configuration, and the figures of mmdetection's table."""

    deepen: float
    widen: float
    channels: int
    neck_blocks: int
    parameters: float  # in millions
    flops: float  # multiply-adds at 640 x 640, in 10^9


SIZES = {
    "tiny": Published(0.167, 0.375, 96, 1, 5.6, 11.8),
    "s": Published(0.33, 0.5, 128, 1, 10.18, 21.5),
    "m": Published(0.67, 0.75, 192, 2, 27.58, 54.13),
    "l": Published(1.0, 1.0, 256, 3, 57.37, 106.56),
    "x": Published(1.33, 1.25, 320, 4, 102.7, 182.7),
}
NORM = ("weight", "bias", "running_mean", "running_var")


class _Shapes(dict[str, tuple[int, ...]]):
    """The names and shapes of a checkpoint's tensors."""

    def conv(self, name: str, into: int, out: int, kernel: int, groups: int = 1) -> None:
        """A convolution without bias and its batch norm."""
        self[f"{name}.conv.weight"] = (out, into // groups, kernel, kernel)
        for part in NORM:
            self[f"{name}.bn.{part}"] = (out,)
        self[f"{name}.bn.num_batches_tracked"] = ()

    def plain(self, name: str, into: int, out: int) -> None:
        """A 1x1 convolution with bias."""
        self[f"{name}.weight"], self[f"{name}.bias"] = (out, into, 1, 1), (out,)

    def csp(self, name: str, into: int, out: int, blocks: int, attention: bool) -> None:
        half = out // 2
        for part in ("main_conv", "short_conv"):
            self.conv(f"{name}.{part}", into, half, 1)
        self.conv(f"{name}.final_conv", 2 * half, out, 1)
        for i in range(blocks):
            self.conv(f"{name}.blocks.{i}.conv1", half, half, 3)
            self.conv(f"{name}.blocks.{i}.conv2.depthwise_conv", half, half, 5, groups=half)
            self.conv(f"{name}.blocks.{i}.conv2.pointwise_conv", half, half, 1)
        if attention:
            self.plain(f"{name}.attention.fc", 2 * half, 2 * half)


def published_shapes(size: str, classes: int = 80) -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor of the checkpoint; counters have no dimension."""
    form, shapes = SIZES[size], _Shapes()
    widths = [int(c * form.widen) for c in (64, 128, 256, 512, 1024)]
    stem = int(64 * form.widen // 2)
    for i, (into, out) in enumerate(((3, stem), (stem, stem), (stem, widths[0]))):
        shapes.conv(f"backbone.stem.{i}", into, out, 3)
    for i, number in enumerate((3, 6, 6, 3)):
        name, out = f"backbone.stage{i + 1}", widths[i + 1]
        shapes.conv(f"{name}.0", widths[i], out, 3)
        if i == 3:
            shapes.conv(f"{name}.1.conv1", out, out // 2, 1)
            shapes.conv(f"{name}.1.conv2", 4 * (out // 2), out, 1)
        blocks = max(round(number * form.deepen), 1)
        shapes.csp(f"{name}.{2 if i == 3 else 1}", out, out, blocks, attention=True)
    _neck(shapes, widths[2:], form)
    _head(shapes, form.channels, classes)
    return dict(shapes)


def _neck(shapes: _Shapes, widths: list[int], form: Published) -> None:
    for i, level in enumerate((2, 1)):
        large, small = widths[level], widths[level - 1]
        shapes.conv(f"neck.reduce_layers.{i}", large, small, 1)
        name = f"neck.top_down_blocks.{i}"
        shapes.csp(name, 2 * small, small, form.neck_blocks, attention=False)
    for level in (0, 1):
        small, large = widths[level], widths[level + 1]
        shapes.conv(f"neck.downsamples.{level}", small, small, 3)
        name = f"neck.bottom_up_blocks.{level}"
        shapes.csp(name, 2 * small, large, form.neck_blocks, attention=False)
    for level, width in enumerate(widths):
        shapes.conv(f"neck.out_convs.{level}", width, form.channels, 3)


def _head(shapes: _Shapes, channels: int, classes: int) -> None:
    kernels = (10 * 8 + 8) + (8 * 8 + 8) + (8 + 1)
    for level in range(3):
        for tower in ("cls_convs", "reg_convs", "kernel_convs"):
            for i in range(2):
                shapes.conv(f"bbox_head.{tower}.{level}.{i}", channels, channels, 3)
        for name, out in (("rtm_cls", classes), ("rtm_reg", 4), ("rtm_kernel", kernels)):
            shapes.plain(f"bbox_head.{name}.{level}", channels, out)
    shapes.plain("bbox_head.mask_head.fusion_conv", 3 * channels, channels)
    for i in range(4):
        shapes.conv(f"bbox_head.mask_head.stacked_convs.{i}", channels, channels, 3)
    shapes.plain("bbox_head.mask_head.projection", channels, 8)


def empty_checkpoint(size: str) -> State:
    """A checkpoint whose tensors take no memory."""
    return empty(published_shapes(size))


def empty(shapes: Mapping[str, tuple[int, ...]]) -> State:
    """Tensors of these shapes that take no memory; those without a dimension are counters."""
    kinds = {True: torch.float32, False: torch.int64}
    return {
        name: torch.zeros((), dtype=kinds[bool(shape)]).expand(shape)
        for name, shape in shapes.items()
    }


def checkpoint(size: str, classes: int = 80, seed: int = 0) -> State:
    """A checkpoint with random tensors.

    The copies of shared tensors are equal, as in mmdetection's files.
    """
    shapes = published_shapes(size, classes)
    generator = torch.Generator().manual_seed(seed)
    state: State = {}
    for name, shape in shapes.items():
        state[name] = _random(name, shape, generator)
    for level in range(3):
        for i in range(2):
            tower, first = f"bbox_head.cls_convs.{level}.{i}", f"bbox_head.cls_convs.0.{i}"
            state[f"{tower}.conv.weight"] = state[f"{first}.conv.weight"].clone()
            for part in ("conv.weight", "bn.num_batches_tracked", *(f"bn.{p}" for p in NORM)):
                same = state[f"{tower}.{part}"].clone()
                state[f"bbox_head.reg_convs.{level}.{i}.{part}"] = same
    return state


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if not shape:
        return torch.tensor(7)
    values = torch.randn(shape, generator=generator)
    if name.endswith("running_var"):
        return 0.5 + values.square()
    if "rtm_cls" in name:
        return values * 0.3 - 4.0 * (len(shape) == 1)
    if "rtm_reg" in name:
        return values * 0.1 + 2.0 * (len(shape) == 1)
    if len(shape) == 4:
        return values * (2.2 / math.prod(shape[1:])) ** 0.5
    return 1 + 0.2 * values if name.endswith("weight") else 0.2 * values
