"""Feature pyramid P3 to P7, or to P5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from condseg.layers.parts import full_precision
from condseg.layers.winograd import Conv3x3
from condseg.models.pyramids.base import Pyramid


class FPN(Pyramid):
    """Feature pyramid: lateral 1x1 convolutions, a nearest top-down path, two levels on top.

    P_i = output_i(lateral_i(C_i) + up(lateral_{i+1}(C_{i+1}) + ...)),
    P6 = p6(P5), P7 = p7(relu(P6)), both 3x3 with stride 2.

    Args:
        in_channels: channels of C3, C4, C5.
        channels: channels of each output map.
        num_levels: 5, or 3 without P6 and P7.

    Shape:
        three maps at strides 8, 16, 32 -> five maps (B, channels, h, w) at 8, 16, 32, 64, 128,
        or the first three.

    Source:
        FPN (CVPR 2017), section 3; P6 and P7 as in FCOS (ICCV 2019).
    """

    def __init__(
        self, in_channels: Sequence[int], channels: int, num_levels: Literal[3, 5] = 5
    ) -> None:
        super().__init__()
        self.strides = self.strides[:num_levels]
        self.lateral = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in in_channels)
        self.output = nn.ModuleList(Conv3x3(channels, channels) for _ in in_channels)
        if num_levels == 5:
            self.p6 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
            self.p7 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d):
                assert conv.bias is not None
                nn.init.kaiming_uniform_(conv.weight, a=1)
                nn.init.zeros_(conv.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Float[Tensor, "b c _h _w"]]:
        merged = [conv(f) for conv, f in zip(self.lateral, features, strict=True)]
        for i in range(len(merged) - 1, 0, -1):
            up = F.interpolate(merged[i], size=merged[i - 1].shape[-2:], mode="nearest")
            merged[i - 1] = merged[i - 1] + up
        maps = [conv(f) for conv, f in zip(self.output, merged, strict=True)]
        if len(self.strides) == 3:
            return maps
        # Full precision: torch 2.11's bfloat16 weight gradient on 1x1 maps is undefined on the CPU.
        with full_precision(maps[-1]):
            maps.append(self.p6(maps[-1].to(self.p6.weight.dtype)))
            maps.append(self.p7(F.relu(maps[-1])))
        return maps
