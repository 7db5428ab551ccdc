"""Bidirectional feature pyramid P3 to P7."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from condseg.layers.parts import check_count, map_norm
from condseg.layers.winograd import Conv3x3
from condseg.models.pyramids.base import Pyramid


class BiFPN(Pyramid):
    """Feature pyramid with repeated top-down and bottom-up paths and learned weights of the maps.

    P6 = pool(norm(1x1(C5))), P7 = pool(P6); then ``num_repeats`` times :class:`BiFPNBlock`.

    Args:
        in_channels: channels of C3, C4, C5.
        channels: channels of each output map.
        num_repeats: number of :class:`BiFPNBlock`.

    Shape:
        three maps at strides 8, 16, 32 -> five maps (B, channels, h, w) at 8, 16, 32, 64, 128.

    Raises:
        ValueError: ``num_repeats`` is outside its range.

    Source:
        EfficientDet (CVPR 2020), section 3, with AdelaiDet's five levels, plain 3x3 convolutions
        and batch norms. AdelaiDet runs a lateral convolution twice, which returns the same map but
        updates its norm's statistics twice per step; here it is run once.
    """

    def __init__(self, in_channels: Sequence[int], channels: int, num_repeats: int = 6) -> None:
        super().__init__()
        check_count(num_repeats=num_repeats)
        self.p6 = nn.Sequential(
            nn.Conv2d(in_channels[-1], channels, 1, bias=False), map_norm("batch", channels)
        )
        inputs = [[*in_channels, channels, channels]] + [[channels] * 5] * (num_repeats - 1)
        self.blocks = nn.ModuleList(BiFPNBlock(each, channels) for each in inputs)

    def forward(self, features: Sequence[Tensor]) -> list[Float[Tensor, "b c _h _w"]]:
        p6 = _pool(self.p6(features[-1]))
        maps = [*features, p6, _pool(p6)]
        for block in self.blocks:
            maps = block(maps)
        return maps


class BiFPNBlock(nn.Module):
    """Merges five maps on a top-down, then on a bottom-up path.

    M_i = f(L_i, up(M_{i+1})) for i = 6..3 with M_7 = L_7; P_3 = M_3,
    P_i = f(L_i, M_i, pool(P_{i-1})) for i = 4..6, P_7 = f(L_7, pool(P_6));
    f(x_1, x_2, ...) = norm(3x3(swish(sum_j w_j x_j / (sum_j w_j + 1e-4)))), w_j = relu(weight_j).

    Args:
        in_channels: of each level; L_i is the map itself if it has ``channels``, else a 1x1
            convolution and norm of it.
        channels: of the merged maps.
    """

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(
            nn.Identity()
            if c == channels
            else nn.Sequential(nn.Conv2d(c, channels, 1), map_norm("batch", channels))
            for c in in_channels
        )
        counts = (2, 2, 2, 2, 3, 3, 3, 2)  # M_6, M_5, M_4, M_3, P_4, P_5, P_6, P_7
        self.weights = nn.ParameterList(torch.ones(count) for count in counts)
        self.output = nn.ModuleList(
            nn.Sequential(Conv3x3(channels, channels, bias=False), map_norm("batch", channels))
            for _ in counts
        )

    def forward(self, maps: Sequence[Float[Tensor, "b _c _h _w"]]) -> list[Tensor]:
        levels = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        top = len(levels) - 1
        middle = [levels[top]]
        for i in reversed(range(top)):
            up = F.interpolate(middle[0], size=levels[i].shape[-2:], mode="nearest")
            middle.insert(0, self._merge(top - 1 - i, levels[i], up))
        merged = [middle[0]]
        for i in range(1, top):
            merged.append(self._merge(top - 1 + i, levels[i], middle[i], _pool(merged[-1])))
        merged.append(self._merge(2 * top - 1, levels[top], _pool(merged[-1])))
        return merged

    def _merge(self, node: int, *maps: Tensor) -> Tensor:
        weights = F.relu(self.weights[node])
        weights = weights / (weights.sum() + 1e-4)
        x = weights[0] * maps[0]
        for weight, other in zip(weights[1:], maps[1:], strict=True):
            x = x + weight * other
        y: Tensor = self.output[node](F.silu(x))
        return y


def _pool(x: Tensor) -> Tensor:
    """Half the size, rounded up."""
    return F.max_pool2d(x, 3, stride=2, padding=1)
