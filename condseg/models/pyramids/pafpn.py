"""RTMDet's pyramid: a top-down, then a bottom-up path of CSP layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from condseg.layers.parts import check_count
from condseg.layers.winograd import use_conv3x3_
from condseg.models.backbones.cspnext import ConvNormAct, CSPLayer
from condseg.models.pyramids.base import Pyramid


class PAFPN(Pyramid):
    """Path aggregation network with the blocks of CSPNeXt, P3 to P5.

    T_5 = reduce_5(C5), T_4 = reduce_4(M_4), M_i = csp_i(concat(up(T_{i+1}), C_i)) for i = 4, 3;
    N_3 = M_3, N_{i+1} = csp'_i(concat(down_i(N_i), T_{i+1})); P_i = output_i(N_i).

    Args:
        in_channels: channels of C3, C4, C5.
        channels: channels of each output map.
        num_blocks: of each CSP layer.

    Shape:
        three maps at strides 8, 16, 32 -> three maps (B, channels, h, w) of the same sizes.

    Raises:
        ValueError: ``num_blocks`` is outside its range.

    Source:
        RTMDet (arXiv 2212.07784), section 3.1, after PANet (CVPR 2018); the connections are those
        of mmdetection's ``CSPNeXtPAFPN``.
    """

    def __init__(self, in_channels: Sequence[int], channels: int, num_blocks: int = 3) -> None:
        super().__init__()
        check_count(num_blocks=num_blocks)
        self.strides = self.strides[:3]
        c3, c4, c5 = in_channels
        # From the coarsest level to the finest.
        self.reduce = nn.ModuleList((ConvNormAct(c5, c4, 1), ConvNormAct(c4, c3, 1)))
        self.top_down = nn.ModuleList(CSPLayer(2 * c, c, num_blocks) for c in (c4, c3))
        # From the finest level to the coarsest.
        self.down = nn.ModuleList(ConvNormAct(c, c, 3, stride=2) for c in (c3, c4))
        self.bottom_up = nn.ModuleList(
            CSPLayer(2 * small, large, num_blocks) for small, large in ((c3, c4), (c4, c5))
        )
        self.output = nn.ModuleList(ConvNormAct(c, channels, 3) for c in in_channels)
        use_conv3x3_(self)

    def forward(self, features: Any) -> list[Any]:  # tensors, or torch.fx proxies
        c3, c4, top = features
        reduced = []
        for i, x in enumerate((c4, c3)):
            reduced.append(self.reduce[i](top))
            up = F.interpolate(reduced[i], size=x.shape[-2:], mode="nearest")
            top = self.top_down[i](torch.cat((up, x), dim=1))
        maps = [top]
        for i, x in enumerate(reversed(reduced)):
            down = self.down[i](maps[i])
            maps.append(self.bottom_up[i](torch.cat((down, x), dim=1)))
        return [output(x) for output, x in zip(self.output, maps, strict=True)]
