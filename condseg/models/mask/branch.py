"""The branch that computes the features shared by all instances of an image."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from condseg.layers.parts import full_precision
from condseg.layers.winograd import Conv3x3
from condseg.ops.masks import aligned_upsample

MaskFilter = Callable[[int, int, int], nn.Module]
"""(in_channels, guide_channels, out_channels) -> filter; a class path in YAML."""


def _block(in_channels: int, out_channels: int, norm: Literal["batch"] | None) -> nn.Sequential:
    conv = Conv3x3(in_channels, out_channels, bias=norm is None)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    norms = [] if norm is None else [nn.BatchNorm2d(out_channels)]
    return nn.Sequential(conv, *norms, nn.ReLU(inplace=True))


class MaskBranch(nn.Module):
    """Mask features at stride 8 from P3, P4 and P5.

    Refine each level, upsample to P3 and add, filter, ``num_convs`` 3x3, 1x1.

    Args:
        in_channels: channels of the pyramid.
        channels: width of the branch.
        num_convs: 3x3 convolutions after the sum.
        out_channels: channels of the mask features.
        num_classes: K of the auxiliary semantic logits on P3; None for no semantic branch.
        norm: batch norm, or None (convolutions with bias).
        mask_filter: builds a dynamic filter, called as ``filter(x, guide)``: x is the sum of the
            levels, the kernels are computed from the guide.
        guide_channels: of an external guide (depth features); without one, refined P3 is the
            guide.

    Shape:
        three maps (B, in_channels, h, w) at strides 8, 16, 32, and an optional guide
        (B, guide_channels, H/8, W/8) -> (B, out_channels, H/8, W/8).

    Source:
        CondInst (ECCV 2020), section 3.2 and the official implementation; the filter is ours,
        after HDFNet (ECCV 2020).
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        num_convs: int,
        out_channels: int,
        num_classes: int | None = None,
        norm: Literal["batch"] | None = "batch",
        mask_filter: MaskFilter | None = None,
        guide_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.refine = nn.ModuleList(_block(in_channels, channels, norm) for _ in range(3))
        guide_channels = guide_channels or channels
        self.filter = mask_filter(channels, guide_channels, channels) if mask_filter else None
        self.tower = nn.Sequential(
            *(_block(channels, channels, norm) for _ in range(num_convs)),
            nn.Conv2d(channels, out_channels, 1),
        )
        self.has_semantic_branch = num_classes is not None
        if num_classes is not None:
            self.semantic_tower = nn.Sequential(
                _block(in_channels, channels, norm), _block(channels, channels, norm)
            )
            self.semantic_logits = nn.Conv2d(channels, num_classes, 1)
            assert self.semantic_logits.bias is not None
            nn.init.constant_(self.semantic_logits.bias, -math.log(99))

    def forward(
        self,
        maps: Sequence[Float[Tensor, "b c _h _w"]],
        guide: Float[Tensor, "b g h w"] | None = None,
    ) -> Float[Tensor, "b m h w"]:
        x = self.refine[0](maps[0])
        guide = x if guide is None else guide
        for refine, level in zip(list(self.refine)[1:], maps[1:], strict=True):
            y = refine(level)
            x = x + aligned_upsample(y, x.shape[-1] // y.shape[-1])
        if self.filter is not None:
            x = self.filter(x, guide)
        x, last = self.tower[:-1](x), self.tower[-1]
        with full_precision(x):  # the masks' outlines depend on these few channels
            features: Tensor = last(x.to(last.weight.dtype))
        return features

    def semantic(self, p3: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        """Logits of the auxiliary semantic segmentation, from P3."""
        logits: Tensor = self.semantic_logits(self.semantic_tower(p3))
        return logits
