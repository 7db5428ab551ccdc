"""RTMDet-Ins's mask head, which differs from CondInst's in how masks are upsampled."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from condseg.models.mask.head import DynamicMaskHead
from condseg.structures import MaskQueries


class RTMDetMaskHead(DynamicMaskHead):
    """:class:`DynamicMaskHead` with masks at the stride of the features.

    In training they are upsampled twice, with the bilinear interpolation of ``F.interpolate``; in
    evaluation the post-process upsamples them at once (``mask_interpolation: logits``).

    Args:
        in_channels, channels, num_layers, relative_coords: as of :class:`DynamicMaskHead`.

    Shape:
        features (B, in_channels, h, w), P queries -> logits (P, 2 h, 2 w), in evaluation (P, h, w).

    Source:
        RTMDet (arXiv 2212.07784), section 3.4; the interpolation is mmdetection's.
    """

    def __init__(
        self,
        in_channels: int = 8,
        channels: int = 8,
        num_layers: int = 3,
        relative_coords: bool = True,
    ) -> None:
        super().__init__(in_channels, channels, num_layers, relative_coords, out_stride=8)

    def forward(
        self, features: Float[Tensor, "b c h w"], queries: MaskQueries
    ) -> Float[Tensor, "p h2 w2"]:
        logits: Tensor = super().forward(features, queries)
        if not self.training:
            return logits
        size = [2 * side for side in logits.shape[-2:]]
        return F.interpolate(logits[:, None], size, mode="bilinear", align_corners=False)[:, 0]


MaskHeadFactory = Callable[[int, int, int, bool], DynamicMaskHead]
"""(in_channels, channels, num_layers, relative_coords) -> mask head; a class path in YAML."""
