"""CondInst: FCOS, a controller, a mask branch and a dynamic mask head, put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from condseg.layers import Implementation, set_implementation
from condseg.layers.winograd import quicken_
from condseg.models.backbones.backbone import Backbone
from condseg.models.heads.fcos import FCOSHead
from condseg.models.heads.rtmdet import RTMDetHead
from condseg.models.mask.branch import MaskBranch, MaskFilter
from condseg.models.mask.depth import DepthEncoder
from condseg.models.mask.head import DynamicMaskHead
from condseg.models.pyramids.bifpn import BiFPN
from condseg.models.pyramids.fpn import FPN
from condseg.ops.locations import location_levels, pyramid_locations
from condseg.structures import DensePredictions, MaskQueries, Size


class CondInst(nn.Module):
    """The network: pictures in, dense predictions out; masks for the locations one chooses.

    Args:
        backbone: gives C3, C4, C5 and normalises the pictures as its weights want.
        num_classes: K.
        channels: of the pyramid and the head: 64, 96, 128, ...
        pyramid: ``fpn``, or ``bifpn``, which goes up and down ``pyramid_repeats`` times.
        pyramid_repeats: see above; an FPN has none.
        tower_convs: 3x3 convolutions of each of the head's towers.
        mask_branch_channels: width of the mask branch.
        mask_branch_convs: its 3x3 convolutions after the sum of the levels.
        mask_features: channels that the instances share.
        mask_head_channels: hidden channels of the dynamic mask head.
        mask_head_layers: its layers.
        relative_coords: give the mask head coordinates relative to the instance.
        semantic_loss: predict semantic logits in training, for the auxiliary loss.
        mask_filter: dynamic filter of the mask branch, see :class:`MaskBranch`.
        sizes_of_interest: pixels at which one level of the pyramid hands over to the next.
        depth_channels: width of the encoder of depth maps, whose features then make the kernels
            of ``mask_filter`` in place of the picture's own; none: the network takes no depth.
        head: FCOS's, or RTMDet-Ins's with a kernel tower and without centerness.
        num_levels: 5 levels of the pyramid, P3 to P7, or 3.
        implementation: ``fast``; ``reference`` computes the same as published, for comparison.

    Shape:
        images (B, 3, H, W) uint8 RGB, H and W multiples of 32, and depth (B, H, W) with
        ``depth_channels`` -> :class:`DensePredictions`.

    Raises:
        ValueError: ``depth_channels`` is below 1, or there is no ``mask_filter`` to guide;
            ``num_levels`` is 3 with a BiFPN.

    Source:
        CondInst (ECCV 2020), figure 3; RTMDet (arXiv 2212.07784), figure 4, for its head. Depth
        as a guide of the filters: HDFNet (ECCV 2020), here in the mask branch alone.
    """

    strides: tuple[int, ...] = (8, 16, 32, 64, 128)

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        channels: int = 256,
        tower_convs: int = 4,
        mask_branch_channels: int = 128,
        mask_branch_convs: int = 4,
        mask_features: int = 8,
        mask_head_channels: int = 8,
        mask_head_layers: int = 3,
        relative_coords: bool = True,
        semantic_loss: bool = False,
        mask_filter: MaskFilter | None = None,
        sizes_of_interest: tuple[int, int, int, int] = (64, 128, 256, 512),
        depth_channels: int | None = None,
        pyramid: Literal["fpn", "bifpn"] = "fpn",
        pyramid_repeats: int = 6,
        head: Literal["fcos", "rtmdet"] = "fcos",
        num_levels: Literal[3, 5] = 5,
        implementation: Implementation = "fast",
    ) -> None:
        super().__init__()
        if depth_channels is not None and mask_filter is None:
            raise ValueError(
                f"depth_channels is {depth_channels}, but there is no mask_filter whose kernels "
                "the depth would make; give one (condseg.layers.DynamicDilatedPyramid2d), or null"
            )
        if pyramid == "bifpn" and num_levels != 5:
            raise ValueError(f"num_levels is {num_levels}; a BiFPN has 5")
        self.num_classes = num_classes
        self.strides = self.strides[:num_levels]
        self.sizes_of_interest = sizes_of_interest[: num_levels - 1]
        self.semantic_loss = semantic_loss
        self.backbone = backbone
        self.fpn: FPN | BiFPN
        if pyramid == "bifpn":
            self.fpn = BiFPN(backbone.out_channels, channels, pyramid_repeats)
        else:
            self.fpn = FPN(backbone.out_channels, channels, num_levels)
        self.mask_head = DynamicMaskHead(
            mask_features, mask_head_channels, mask_head_layers, relative_coords
        )
        make_head = RTMDetHead if head == "rtmdet" else FCOSHead
        self.head: FCOSHead | RTMDetHead = make_head(
            channels, num_classes, tower_convs, self.mask_head.num_params, num_levels
        )
        self.mask_branch = MaskBranch(
            channels,
            mask_branch_channels,
            mask_branch_convs,
            mask_features,
            num_classes=num_classes if semantic_loss else None,
            mask_filter=mask_filter,
            guide_channels=depth_channels,
        )
        self.depth_encoder = None if depth_channels is None else DepthEncoder(depth_channels)
        quicken_(self)
        self.implementation: Implementation = implementation
        set_implementation(self, implementation)

    @property
    def takes_depth(self) -> bool:
        """Whether :meth:`forward` needs depth maps."""
        return self.depth_encoder is not None

    def forward(
        self,
        images: UInt8[Tensor, "b 3 h w"],
        sizes: Sequence[Size],
        depth: Float[Tensor, "b h w"] | None = None,
    ) -> DensePredictions:
        """Dense predictions of a batch.

        Args:
            images: (B, 3, H, W) RGB 0..255, padded at the right and the bottom.
            sizes: (height, width) of each picture inside the padding.
            depth: (B, H, W) distances in any unit, 0 for the padding and where nothing was
                measured; given exactly where the network takes depth.

        Raises:
            ValueError: depth is missing, or given to a network that takes none.
        """
        if (depth is None) == self.takes_depth:
            raise ValueError(
                "the network takes depth (model.network.depth_channels), the batch has none"
                if self.takes_depth
                else "the batch has depth, the network takes none (model.network.depth_channels)"
            )
        x = self._blank_padding(self.backbone.normalise(images), sizes)
        maps = self.fpn(self.backbone(x))
        head = self.head(maps)
        semantic = self.semantic_loss and self.training
        guide = None if self.depth_encoder is None else self.depth_encoder(depth)
        return DensePredictions(
            head.class_logits,
            head.ltrb,
            head.centerness_logits,
            head.controller_features,
            self.mask_branch(maps[:3], guide),
            self.mask_branch.semantic(maps[0]) if semantic else None,
        )

    def locations(self, dense: DensePredictions) -> Float[Tensor, "l 2"]:
        """The L locations (x, y) in pixels of the input."""
        return pyramid_locations(dense.level_sizes, self.strides, dense.ltrb.device)

    def queries(
        self,
        dense: DensePredictions,
        image_index: Int64[Tensor, " p"],
        location_index: Int64[Tensor, " p"],
        instance_index: Int64[Tensor, " p"] | None = None,
    ) -> MaskQueries:
        """What the mask head needs for P chosen locations.

        Args:
            dense: predictions of the batch.
            image_index: (P,) picture.
            location_index: (P,) location 0..L-1.
            instance_index: (P,) the picture's object, in training.
        """
        params = self.head.params_at(dense.controller_features, image_index, location_index)
        last = self.sizes_of_interest[-1]
        sizes = torch.tensor((*self.sizes_of_interest, 2 * last), device=params.device)
        levels = location_levels(dense.level_sizes, params.device)[location_index]
        if instance_index is None:
            instance_index = torch.full_like(image_index, -1)
        points = self.locations(dense)[location_index]
        return MaskQueries(params, points, sizes[levels].float(), image_index, instance_index)

    def mask_logits(
        self, dense: DensePredictions, queries: MaskQueries
    ) -> Float[Tensor, "p h4 w4"]:
        """Mask logits (P, H/4, W/4) of the queries."""
        logits: Tensor = self.mask_head(dense.mask_features, queries)
        return logits

    @staticmethod
    def _blank_padding(x: Float[Tensor, "b 3 h w"], sizes: Sequence[Size]) -> Tensor:
        """Zero beside the pictures, after the normalisation, as the weights were trained."""
        height, width = x.shape[-2:]
        if all(size == (height, width) for size in sizes):
            return x
        extent = torch.tensor([list(s) for s in sizes], device=x.device)[:, :, None]
        rows = torch.arange(height, device=x.device) < extent[:, 0]
        columns = torch.arange(width, device=x.device) < extent[:, 1]
        return x * (rows[:, None, :, None] & columns[:, None, None, :])
