"""Parts of CondInst computed as the official code computes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condseg.layers.parts import full_precision
from condseg.models import Backbone, DynamicMaskHead, FCOSHead, PostProcess, RTMDetHead
from condseg.models.backbones.frozen_norm import FrozenBatchNorm2d
from condseg.models.heads.rtmdet import predict_levels
from condseg.ops.locations import level_locations
from condseg.ops.masks import aligned_upsample
from condseg.structures import FCOSPredictions, HeadPredictions, ImageInfo, MaskQueries, Size


class PublishedBackbone(Backbone):
    """Maps in the contiguous memory format."""

    def _to_memory_format(self, x: Tensor) -> Tensor:
        return x


class PublishedBatchNorm2d(FrozenBatchNorm2d):
    """PyTorch's batch norm in evaluation."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.BatchNorm2d.forward(self, input)


class PublishedFCOSHead(FCOSHead):
    """The controller is applied to the whole maps: ``controller_features`` are its output."""

    def forward(self, maps: Sequence[Tensor]) -> FCOSPredictions:
        predictions = super().forward(maps)
        with full_precision(maps[0]):
            params = [self.controller(x) for x in predictions.controller_features]
        return replace(predictions, controller_features=params)

    def _regress(self, boxes: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        pairs = list(zip(self.scales, boxes, strict=True))
        ltrb = [F.relu(scale * self.box_ltrb(x)).flatten(2) for scale, x in pairs]
        return ltrb, [self.centerness(x).flatten(1) for x in boxes]

    def params_at(self, features: Any, image_index: Tensor, location_index: Tensor) -> Tensor:
        return _read(features, image_index, location_index)


class PublishedRTMDetHead(RTMDetHead):
    """The kernels' last convolutions are applied to the whole maps."""

    def forward(self, maps: Sequence[Tensor]) -> HeadPredictions:
        predictions = super().forward(maps)
        params = predict_levels(self.controller, predictions.controller_features)
        return replace(predictions, controller_features=params)

    def params_at(self, features: Any, image_index: Tensor, location_index: Tensor) -> Tensor:
        return _read(features, image_index, location_index)


def _read(maps: Sequence[Tensor], image_index: Tensor, location_index: Tensor) -> Tensor:
    whole = torch.cat([x.flatten(2) for x in maps], dim=2)  # (B, G, L)
    return whole[image_index, :, location_index]


class PublishedMaskHead(DynamicMaskHead):
    """Features repeated for each instance, and one grouped convolution per layer."""

    def _compute(self, features: Tensor, queries: MaskQueries, factor: int) -> Tensor:
        num, (h, w) = len(queries.params), features.shape[-2:]
        x = features[queries.image_index]  # (P, C, h, w)
        if self.relative_coords:
            pixels = level_locations((h, w), self.feature_stride, features.device)  # (h w, 2)
            relative = queries.points[:, None] - pixels  # (P, h w, 2)
            relative = relative / queries.size_of_interest[:, None, None]
            relative = relative.transpose(1, 2).reshape(num, 2, h, w)
            x = torch.cat((relative.to(x.dtype), x), dim=1)
        x = x.reshape(1, -1, h, w)
        weights, biases = self.grouped(queries.params)
        for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            x = F.conv2d(x, weight, bias, groups=num)
            if i + 1 < len(weights):
                x = F.relu(x)
        return aligned_upsample(x.view(num, h, w), factor)


class PublishedPostProcess(PostProcess):
    """Masks are interpolated as a whole."""

    def paste(
        self, logits: Tensor, image: Tensor, infos: Sequence[ImageInfo], stride: int
    ) -> Tensor:
        height, width = (max(info.original_size[k] for info in infos) for k in (0, 1))
        masks = torch.zeros(len(logits), height, width, dtype=torch.bool, device=logits.device)
        for i, info in enumerate(infos):
            args = (stride, info.size, info.original_size, self.mask_threshold)
            own = paste_whole(logits[image == i].float(), *args)
            masks[image == i, : own.shape[1], : own.shape[2]] = own
        return masks


def paste_whole(
    logits: Tensor, stride: int, size: Size, original: Size, threshold: float
) -> Tensor:
    """:func:`condseg.ops.paste.paste` by interpolation of whole maps."""
    if len(logits) == 0:
        return logits.new_zeros(0, *original, dtype=torch.bool)
    scores = aligned_upsample(logits.sigmoid(), stride)[None, :, : size[0], : size[1]]
    scores = F.interpolate(scores, original, mode="bilinear", align_corners=False)
    return scores[0] > threshold


def published_postprocess(postprocess: PostProcess) -> PublishedPostProcess:
    """The published form with the same options."""
    return PublishedPostProcess(**vars(postprocess))


DETECTOR: dict[type[nn.Module], type[nn.Module]] = {
    Backbone: PublishedBackbone,
    FrozenBatchNorm2d: PublishedBatchNorm2d,
    FCOSHead: PublishedFCOSHead,
    RTMDetHead: PublishedRTMDetHead,
    DynamicMaskHead: PublishedMaskHead,
}
"""Type of a part -> type of its published form, which has the same attributes."""
