"""The dense head: classes, boxes and centerness at every location, and the controller."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from condseg.layers import Implementation
from condseg.layers.parts import full_precision
from condseg.layers.winograd import Conv3x3


def _tower(channels: int, num_convs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(num_convs):
        conv = nn.Conv2d(channels, channels, 3, padding=1)
        layers += [conv, nn.GroupNorm(32, channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def run_levels(layers: Iterable[nn.Module], maps: Sequence[Tensor]) -> list[Tensor]:
    """Layers that the levels share, one after the other; 3x3 convolutions take all at once."""
    maps = list(maps)
    for layer in layers:
        together = isinstance(layer, Conv3x3)
        maps = layer(maps) if together else [layer(x) for x in maps]
    return maps


@dataclass(frozen=True, slots=True)
class HeadOutputs:
    """Flattened predictions of all levels and the maps from which the controller's are taken.

    Attributes:
        class_logits: (B, L, K).
        ltrb: (B, L, 4) in strides of the level, >= 0.
        centerness_logits: (B, L); None of a head whose class scores say how good the box is.
        controller_features: (B, C, h, w) a level, what the controller reads; in the reference form
            (B, G, h, w), what it gives.
    """

    class_logits: Float[Tensor, "b l k"]
    ltrb: Float[Tensor, "b l 4"]
    centerness_logits: Float[Tensor, "b l"] | None
    controller_features: list[Float[Tensor, "b c _h _w"]]


class FCOSHead(nn.Module):
    """FCOS head shared by the levels, with CondInst's controller on the box tower.

    Args:
        channels: channels of the pyramid: 64, 96, 128, ... (group norm with 32 groups).
        num_classes: K.
        num_convs: 3x3 convolutions of each tower.
        num_params: G, parameters that the controller generates for one instance.
        num_levels: levels of the pyramid, one learned scale of the boxes each.

    Attributes:
        implementation: "reference" runs the controller over the whole maps, as published; "fast"
            only where :meth:`params_at` is asked.

    Raises:
        ValueError: ``channels`` is below 64 or no multiple of 32.

    Source:
        FCOS (ICCV 2019), figure 2, centerness on the regression branch; CondInst (ECCV 2020),
        section 3.1: the controller is one 3x3 convolution on the box tower.
    """

    implementation: Implementation = "fast"

    def __init__(
        self, channels: int, num_classes: int, num_convs: int, num_params: int, num_levels: int = 5
    ) -> None:
        super().__init__()
        if channels % 32 or channels < 64:
            raise ValueError(
                f"channels={channels}: the head's norm has 32 groups, so 64, 96, 128, ... channels"
            )
        self.class_tower = _tower(channels, num_convs)
        self.box_tower = _tower(channels, num_convs)
        self.class_logits = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.box_ltrb = nn.Conv2d(channels, 4, 3, padding=1)
        self.centerness = nn.Conv2d(channels, 1, 3, padding=1)
        self.controller = nn.Conv2d(channels, num_params, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(num_levels))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        assert self.class_logits.bias is not None
        nn.init.constant_(self.class_logits.bias, -math.log((1 - 0.01) / 0.01))

    def forward(self, maps: Sequence[Float[Tensor, "b c _h _w"]]) -> HeadOutputs:
        boxes, classes = run_levels(self.box_tower, maps), run_levels(self.class_tower, maps)
        # What is predicted is not rounded to half precision, nor are the masks' parameters.
        dtype = self.scales.dtype
        with full_precision(boxes[0]):
            boxes, classes = [x.to(dtype) for x in boxes], [x.to(dtype) for x in classes]
            logits = run_levels([self.class_logits], classes)
            ltrb, centerness = self._sides(boxes)
            whole = self.implementation == "reference"
            return HeadOutputs(
                torch.cat([x.flatten(2) for x in logits], dim=2).transpose(1, 2),
                torch.cat(ltrb, dim=2).transpose(1, 2),
                torch.cat(centerness, dim=1),
                [self.controller(x) for x in boxes] if whole else boxes,
            )

    def _sides(self, boxes: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Distances to the sides (B, 4, h w) and centerness (B, h w) of each level."""
        pair = (self.box_ltrb, self.centerness)
        weights = torch.cat([conv.weight for conv in pair])
        biases = torch.cat([conv.bias for conv in pair if conv.bias is not None])
        ltrb, centerness = [], []
        for scale, x in zip(self.scales, boxes, strict=True):
            if self.implementation == "reference":
                sides, center = self.box_ltrb(x), self.centerness(x)
            else:
                # Together they cost what one of them does: so few channels are filled up.
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
        """The controller's output at chosen locations only.

        Equal to the convolution over the whole maps read off at those places; the 3x3 windows
        are gathered and multiplied as one matrix, so nothing is computed where nobody asks.

        Args:
            controller_features: of :class:`HeadOutputs`.
            image_index: (P,) picture of each choice.
            location_index: (P,) its location 0..L-1.
        """
        if self.implementation == "reference":
            dense = torch.cat([x.flatten(2) for x in controller_features], dim=2)
            return dense[image_index, :, location_index]
        channels = controller_features[0].shape[1]
        rows, levels, first_location, first_row = [], [], 0, 0
        for x in controller_features:
            batch, _, h, w = x.shape
            rows.append(F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1).reshape(-1, channels))
            levels.append((first_location, first_row, (h + 2) * (w + 2), w))
            first_location += h * w
            first_row += batch * (h + 2) * (w + 2)
        # Each choice looks its level up, so that no shape depends on where the choices lie.
        table = torch.tensor(levels, device=location_index.device)
        level = torch.bucketize(location_index, table[:, 0].contiguous(), right=True) - 1
        first, start, area, width = table[level].unbind(1)
        cell = location_index - first
        corner = start + image_index * area + cell // width * (width + 2) + cell % width
        step = torch.arange(3, device=width.device)
        window = step[:, None] * (width[:, None, None] + 2) + step
        places = (corner[:, None, None] + window).flatten()
        patches = torch.cat(rows).index_select(0, places)
        weight = self.controller.weight.permute(0, 2, 3, 1).flatten(1)
        with full_precision(patches):
            return F.linear(patches.view(-1, 9 * channels), weight, self.controller.bias)
