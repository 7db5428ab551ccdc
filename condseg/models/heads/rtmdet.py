"""RTMDet-Ins's head: classes and boxes of one tower, mask parameters of another, no centerness."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from condseg.layers.parts import check_count, full_precision
from condseg.layers.winograd import Conv3x3
from condseg.models.heads.base import DenseHead
from condseg.models.heads.levels import run_levels
from condseg.models.losses.soft_labels import SoftLabelLoss
from condseg.structures import HeadPredictions


class _Tower(nn.Module):
    """3x3 convolutions, shared by the levels or each level's own; batch norms of each level; SiLU.

    Args:
        channels: of the input and the output.
        num_convs: n.
        num_levels: of the input.
        shared: whether the levels share the convolutions.
    """

    def __init__(self, channels: int, num_convs: int, num_levels: int, shared: bool) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.ModuleList(Conv3x3(channels, channels, bias=False) for _ in range(num_convs))
            for _ in range(1 if shared else num_levels)
        )
        self.norms = nn.ModuleList(
            nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(num_convs))
            for _ in range(num_levels)
        )

    def forward(self, maps: Sequence[Tensor]) -> Sequence[Tensor]:
        for convs, *norms in zip(zip(*self.convs, strict=True), *self.norms, strict=True):
            if len(convs) == 1:
                maps = run_levels(convs, maps)
            else:
                maps = [conv(x) for conv, x in zip(convs, maps, strict=True)]
            maps = [F.silu(norm(x)) for norm, x in zip(norms, maps, strict=True)]
        return maps


class RTMDetHead(DenseHead):
    """Head of RTMDet-Ins: the class score is trained to be the box's IoU.

    x'_l = (SiLU BN_l conv)^n x_l for classes and boxes, x''_l = (SiLU BN_l conv_l)^n x_l for the
    kernels; then one 1x1 convolution per level and output; distances are relu(.) strides.

    Args:
        channels: channels of the pyramid.
        num_classes: K.
        num_params: G, parameters that the kernel branch predicts for one instance.
        num_levels: levels of the pyramid.
        tower_convs: n, 3x3 convolutions of each tower.

    Shape:
        maps (B, channels, h, w) of the levels -> :class:`HeadPredictions`.

    Raises:
        ValueError: ``tower_convs`` is outside its range.

    Source:
        RTMDet (arXiv 2212.07784), section 3: convolutions shared by the levels, batch norms not;
        a kernel branch of 169 outputs. As in mmdetection's ``RTMDetInsSepBNHead``, in contrast to
        the paper, one tower is that of the classes and the boxes, and the kernel tower's
        convolutions are each level's own; locations are the corners of the cells.
    """

    location_offset = 0.0

    def __init__(
        self,
        channels: int,
        num_classes: int,
        num_params: int,
        num_levels: int = 3,
        tower_convs: int = 2,
    ) -> None:
        super().__init__()
        check_count(0, tower_convs=tower_convs)

        def outputs(count: int) -> nn.ModuleList:
            return nn.ModuleList(nn.Conv2d(channels, count, 1) for _ in range(num_levels))

        self.tower = _Tower(channels, tower_convs, num_levels, shared=True)
        self.kernel_tower = _Tower(channels, tower_convs, num_levels, shared=False)
        self.class_logits, self.box_ltrb = outputs(num_classes), outputs(4)
        self.controller = outputs(num_params)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
        starts = ((self.class_logits, -math.log(99)), (self.box_ltrb, 1.0), (self.controller, 0.0))
        for convs, bias in starts:
            for conv in convs:
                assert isinstance(conv, nn.Conv2d) and conv.bias is not None  # noqa: PT018
                nn.init.constant_(conv.bias, bias)

    def default_loss(self) -> SoftLabelLoss:
        return SoftLabelLoss()

    def forward(self, maps: Sequence[Float[Tensor, "b c _h _w"]]) -> HeadPredictions:
        shared = self.tower(maps)
        logits = predict_levels(self.class_logits, shared)
        ltrb = predict_levels(self.box_ltrb, shared)
        return HeadPredictions(_flatten(logits), F.relu(_flatten(ltrb)), self.kernel_tower(maps))

    def params_at(
        self,
        controller_features: Sequence[Float[Tensor, "b c _h _w"]],
        image_index: Int64[Tensor, " p"],
        location_index: Int64[Tensor, " p"],
    ) -> Float[Tensor, "p g"]:
        whole = torch.cat([x.flatten(2) for x in controller_features], dim=2)  # (B, C, L)
        cells = whole[image_index, :, location_index]  # (P, C)
        params: list[Tensor] = []
        with full_precision(cells):
            # By each level's convolution, as which locations are of a level is not known here.
            for conv in self.controller:
                assert isinstance(conv, nn.Conv2d)
                cells = cells.to(conv.weight.dtype)
                params.append(F.linear(cells, conv.weight.flatten(1), conv.bias))
        chosen, end = params[0], 0
        for x, of_level in zip(controller_features[:-1], params[1:], strict=True):
            end += x.shape[-2] * x.shape[-1]
            chosen = torch.where((location_index >= end)[:, None], of_level, chosen)
        return chosen


def predict_levels(
    convs: nn.ModuleList, maps: Sequence[Tensor]
) -> list[Float[Tensor, "b k _h _w"]]:
    """One convolution per level, in full precision under autocast."""
    with full_precision(maps[0]):
        dtype = next(convs.parameters()).dtype
        return [conv(x.to(dtype)) for conv, x in zip(convs, maps, strict=True)]


def _flatten(maps: Sequence[Tensor]) -> Float[Tensor, "b l k"]:
    """Level after level, locations before channels."""
    return torch.cat([x.flatten(2) for x in maps], dim=2).transpose(1, 2)
