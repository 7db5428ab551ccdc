"""FCOS's head with CondInst's controller."""

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
from condseg.models.heads.levels import conv3x3_at, conv_tower, run_levels
from condseg.models.losses.fcos import FCOSLoss
from condseg.structures import FCOSPredictions


class FCOSHead(DenseHead):
    """FCOS head shared by the levels, with CondInst's controller on the box tower.

    Args:
        channels: channels of the pyramid: 64, 96, 128, ... (group norm with 32 groups).
        num_classes: K.
        num_params: G, parameters that the controller predicts for one instance.
        num_levels: levels of the pyramid, each with a learned scale of the boxes.
        tower_convs: 3x3 convolutions of each tower.

    Shape:
        maps (B, channels, h, w) of the levels -> :class:`FCOSPredictions`.

    Raises:
        ValueError: ``channels`` is below 64 or not a multiple of 32, or ``tower_convs`` is outside
            its range.

    Source:
        FCOS (ICCV 2019), figure 2, centerness on the regression branch; CondInst (ECCV 2020),
        section 3.1: the controller is one 3x3 convolution on the box tower.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        num_params: int,
        num_levels: int = 5,
        tower_convs: int = 4,
    ) -> None:
        super().__init__()
        if channels % 32 or channels < 64:
            raise ValueError(
                f"channels is {channels}; 64, 96, 128, ... are allowed, for the head's group norm "
                "has 32 groups"
            )
        check_count(0, tower_convs=tower_convs)
        self.class_tower = conv_tower(channels, tower_convs)
        self.box_tower = conv_tower(channels, tower_convs)
        self.class_logits = Conv3x3(channels, num_classes)
        self.box_ltrb = Conv3x3(channels, 4)
        self.centerness = Conv3x3(channels, 1)
        self.controller = Conv3x3(channels, num_params)
        self.scales = nn.Parameter(torch.ones(num_levels))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        assert self.class_logits.bias is not None
        nn.init.constant_(self.class_logits.bias, -math.log((1 - 0.01) / 0.01))

    def default_loss(self) -> FCOSLoss:
        return FCOSLoss()

    def forward(self, maps: Sequence[Float[Tensor, "b c _h _w"]]) -> FCOSPredictions:
        boxes, classes = run_levels(self.box_tower, maps), run_levels(self.class_tower, maps)
        dtype = self.scales.dtype
        # Predictions and the masks' parameters are computed in full precision under autocast.
        with full_precision(boxes[0]):
            boxes, classes = [x.to(dtype) for x in boxes], [x.to(dtype) for x in classes]
            logits = run_levels([self.class_logits], classes)
            ltrb, centerness = self._regress(boxes)
            return FCOSPredictions(
                torch.cat([x.flatten(2) for x in logits], dim=2).transpose(1, 2),  # (B, L, K)
                torch.cat(ltrb, dim=2).transpose(1, 2),  # (B, L, 4)
                boxes,
                torch.cat(centerness, dim=1),  # (B, L)
            )

    def _regress(self, boxes: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Distances to the sides (B, 4, h w) and centerness (B, h w) of each level."""
        pair = (self.box_ltrb, self.centerness)
        weights = torch.cat([conv.weight for conv in pair])
        biases = torch.cat([conv.bias for conv in pair if conv.bias is not None])
        ltrb, centerness = [], []
        for scale, x in zip(self.scales, boxes, strict=True):
            # One convolution of 5 output channels takes the time of one of 4.
            sides, center = F.conv2d(x, weights, biases, padding=1).split((4, 1), dim=1)
            ltrb.append(F.relu(scale * sides).flatten(2))
            centerness.append(center.flatten(1))
        return ltrb, centerness

    def params_at(
        self,
        controller_features: Sequence[Float[Tensor, "b c _h _w"]],
        image_index: Int64[Tensor, " p"],
        location_index: Int64[Tensor, " p"],
    ) -> Float[Tensor, "p g"]:
        return conv3x3_at(self.controller, controller_features, image_index, location_index)
