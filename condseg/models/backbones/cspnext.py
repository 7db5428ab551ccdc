"""CSPNeXt, RTMDet's backbone, and the blocks that its pyramid shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True, slots=True)
class Scale:
    """Factors of the numbers of blocks and channels of size l."""

    depth: float
    width: float


SCALES = {
    "cspnext_tiny": Scale(0.167, 0.375),
    "cspnext_s": Scale(0.33, 0.5),
    "cspnext_m": Scale(0.67, 0.75),
    "cspnext_l": Scale(1.0, 1.0),
    "cspnext_x": Scale(1.33, 1.25),
}
_CHANNELS, _BLOCKS = (64, 128, 256, 512, 1024), (3, 6, 6, 3)


class ConvNormAct(nn.Module):
    """SiLU(norm(conv(x))); the size changes by the stride alone.

    Args:
        in_channels, out_channels, kernel_size, stride, groups: as in ``nn.Conv2d``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding=kernel_size // 2,
            groups=groups,
            bias=False,
        )
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Any) -> Any:  # a tensor, or a torch.fx proxy
        return F.silu(self.bn(self.conv(x)), inplace=True)


class SeparableConv(nn.Module):
    """A 5x5 depthwise convolution, then a 1x1, each with norm and SiLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise_conv = ConvNormAct(channels, channels, 5, groups=channels)
        self.pointwise_conv = ConvNormAct(channels, channels, 1)

    def forward(self, x: Any) -> Any:
        return self.pointwise_conv(self.depthwise_conv(x))


class CSPNeXtBlock(nn.Module):
    """A 3x3 convolution, then a separable 5x5; with ``residual``, the input is added."""

    def __init__(self, channels: int, residual: bool) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(channels, channels, 3)
        self.conv2 = SeparableConv(channels)
        self.residual = residual

    def forward(self, x: Any) -> Any:
        y = self.conv2(self.conv1(x))
        return x + y if self.residual else y


class ChannelAttention(nn.Module):
    """x hardsigmoid(fc(mean of x))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Any) -> Any:
        return x * F.hardsigmoid(self.fc(x.mean((2, 3), keepdim=True)))


class CSPLayer(nn.Module):
    """Cross stage partial layer: half of the channels skip the blocks.

    final(attention(concat(blocks(main(x)), short(x)))), all but the blocks 1x1 convolutions.

    Args:
        in_channels: of the input.
        out_channels: of the output; each half has half of them.
        num_blocks: :class:`CSPNeXtBlock` on the main half.
        residual: of the blocks.
        attention: whether there is a :class:`ChannelAttention`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_blocks: int,
        residual: bool = False,
        attention: bool = False,
    ) -> None:
        super().__init__()
        half = out_channels // 2
        self.main_conv = ConvNormAct(in_channels, half, 1)
        self.short_conv = ConvNormAct(in_channels, half, 1)
        self.final_conv = ConvNormAct(2 * half, out_channels, 1)
        self.blocks = nn.Sequential(*(CSPNeXtBlock(half, residual) for _ in range(num_blocks)))
        self.attention = ChannelAttention(2 * half) if attention else nn.Identity()

    def forward(self, x: Any) -> Any:
        x = torch.cat((self.blocks(self.main_conv(x)), self.short_conv(x)), dim=1)
        return self.final_conv(self.attention(x))


class PoolingPyramid(nn.Module):
    """Spatial pyramid pooling: the input beside its max pools of 5, 9 and 13 pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = ConvNormAct(channels, half, 1)
        self.conv2 = ConvNormAct(4 * half, channels, 1)

    def forward(self, x: Any) -> Any:
        x = self.conv1(x)
        pools = [F.max_pool2d(x, k, stride=1, padding=k // 2) for k in (5, 9, 13)]
        return self.conv2(torch.cat((x, *pools), dim=1))


class CSPNeXt(nn.Module):
    """A stem of three 3x3 convolutions, then four stages of stride 2 with a :class:`CSPLayer`.

    Args:
        name: one of ``SCALES``.

    Shape:
        (B, 3, H, W) -> maps of strides 2, 4, 8, 16, 32 with (64, 128, 256, 512, 1024) w channels,
        w the width of the scale.

    Source:
        RTMDet (arXiv 2212.07784), section 3.1 and figure 3; numbers, names of the tensors and
        initial values of mmdetection's ``CSPNeXt``.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        scale = SCALES[name]
        widths = [int(channels * scale.width) for channels in _CHANNELS]
        self.out_channels = tuple(widths)
        stem = widths[0] // 2
        self.stem = nn.Sequential(
            ConvNormAct(3, stem, 3, stride=2),
            ConvNormAct(stem, stem, 3),
            ConvNormAct(stem, widths[0], 3),
        )
        for i, blocks in enumerate(_BLOCKS):
            channels, last = widths[i + 1], i == len(_BLOCKS) - 1
            depth = max(round(blocks * scale.depth), 1)
            stage = [
                ConvNormAct(widths[i], channels, 3, stride=2),
                *([PoolingPyramid(channels)] if last else []),
                CSPLayer(channels, channels, depth, residual=not last, attention=True),
            ]
            self.add_module(f"stage{i + 1}", nn.Sequential(*stage))
        self._stages = tuple(f"stage{i + 1}" for i in range(len(_BLOCKS)))

    def forward(self, x: Any) -> list[Any]:
        maps = [self.stem(x)]
        for name in self._stages:
            maps.append(self.get_submodule(name)(maps[-1]))
        return maps

    @property
    def stage_ends(self) -> dict[int, str]:
        """Stage k has stride 2^k; the last module of each."""
        return dict(enumerate(("stem", *self._stages), start=1))
