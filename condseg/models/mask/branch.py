"""The branch that computes the features shared by all instances of an image."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from condseg.layers.parts import full_precision
from condseg.layers.winograd import Conv3x3
from condseg.ops.masks import aligned_upsample

MaskFilter = Callable[[int, int, int], nn.Module]
"""(in_channels, guide_channels, out_channels) -> filter; a class path in YAML."""


def _block(
    in_channels: int,
    out_channels: int,
    norm: Literal["batch"] | None,
    activation: type[nn.ReLU | nn.SiLU],
) -> nn.Sequential:
    conv = Conv3x3(in_channels, out_channels, bias=norm is None)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    norms = [] if norm is None else [nn.BatchNorm2d(out_channels)]
    return nn.Sequential(conv, *norms, activation(inplace=True))


class MaskBranch(nn.Module):
    """Mask features at stride 8 from P3, P4 and P5.

    Refine each level, upsample to P3 and add, filter, ``num_convs`` 3x3, 1x1.

    Args:
        in_channels: channels of the pyramid.
        channels: width of the branch.
        num_convs: 3x3 convolutions after the levels are joined.
        out_channels: channels of the mask features.
        num_classes: K of the auxiliary semantic logits on P3; None for no semantic branch.
        mask_filter: builds a dynamic filter, called as ``filter(x, guide)``: x is the sum of the
            levels, the kernels are computed from the guide.
        guide_channels: of an external guide (depth features); without one, refined P3 is the
            guide.
        norm: batch norm, or None (convolutions with bias).

    Shape:
        three maps (B, in_channels, h, w) at strides 8, 16, 32, and an optional guide
        (B, guide_channels, H/8, W/8) -> (B, out_channels, H/8, W/8).

    Source:
        CondInst (ECCV 2020), section 3.2 and the official implementation; the filter is ours,
        after HDFNet (ECCV 2020).
    """

    activation: type[nn.ReLU | nn.SiLU] = nn.ReLU

    def __init__(
        self,
        in_channels: int,
        channels: int,
        num_convs: int,
        out_channels: int,
        num_classes: int | None = None,
        mask_filter: MaskFilter | None = None,
        guide_channels: int | None = None,
        norm: Literal["batch"] | None = "batch",
    ) -> None:
        super().__init__()
        self.refine = self._refine(in_channels, channels, norm)
        guide_channels = guide_channels or channels
        self.filter = mask_filter(channels, guide_channels, channels) if mask_filter else None
        self.tower = nn.Sequential(
            *(_block(channels, channels, norm, self.activation) for _ in range(num_convs)),
            nn.Conv2d(channels, out_channels, 1),
        )
        self.has_semantic_branch = num_classes is not None
        if num_classes is not None:
            self.semantic_tower = nn.Sequential(
                _block(in_channels, channels, norm, self.activation),
                _block(channels, channels, norm, self.activation),
            )
            self.semantic_logits = nn.Conv2d(channels, num_classes, 1)
            assert self.semantic_logits.bias is not None
            nn.init.constant_(self.semantic_logits.bias, -math.log(99))

    def _refine(self, in_channels: int, channels: int, norm: Literal["batch"] | None) -> nn.Module:
        """The layers of :meth:`_join`."""
        blocks = (_block(in_channels, channels, norm, self.activation) for _ in range(3))
        return nn.ModuleList(blocks)

    def _join(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The levels in one map (B, channels, H/8, W/8), and what guides a filter by default."""
        refine: Any = self.refine
        guide = x = refine[0](maps[0])
        for block, level in zip(list(refine)[1:], maps[1:], strict=True):
            y = block(level)
            x = x + aligned_upsample(y, x.shape[-1] // y.shape[-1])
        return x, guide

    def forward(
        self,
        maps: Sequence[Float[Tensor, "b c _h _w"]],
        guide: Float[Tensor, "b g h w"] | None = None,
    ) -> Float[Tensor, "b m h w"]:
        x, inner_guide = self._join(maps)
        if self.filter is not None:
            x = self.filter(x, inner_guide if guide is None else guide)
        x, last = self.tower[:-1](x), self.tower[-1]
        with full_precision(x):  # the masks' outlines depend on these few channels
            features: Tensor = last(x.to(last.weight.dtype))
        return features

    def semantic(self, p3: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        """Logits of the auxiliary semantic segmentation, from P3."""
        logits: Tensor = self.semantic_logits(self.semantic_tower(p3))
        return logits


class ConcatMaskBranch(MaskBranch):
    """Mask features of RTMDet-Ins: the levels are concatenated instead of added.

    Upsample to P3, concatenate, 1x1, filter, ``num_convs`` 3x3, 1x1. Without an external guide,
    the output of the first 1x1 is the guide.

    Args, Shape: as of :class:`MaskBranch`.

    Source:
        RTMDet (arXiv 2212.07784), section 3.4, mmdetection's ``MaskFeatModule``.
    """

    activation = nn.SiLU

    def _refine(self, in_channels: int, channels: int, norm: Literal["batch"] | None) -> nn.Module:
        return nn.Conv2d(3 * in_channels, channels, 1)

    def _join(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        size = maps[0].shape[-2:]
        coarse = [F.interpolate(x, size, mode="bilinear", align_corners=False) for x in maps[1:]]
        x = self.refine(torch.cat((maps[0], *coarse), dim=1))
        return x, x


MaskBranchFactory = Callable[
    [int, int, int, int, int | None, MaskFilter | None, int | None], MaskBranch
]
"""(in_channels, channels, num_convs, out_channels, num_classes, mask_filter, guide_channels) ->
mask branch; a class path in YAML."""
