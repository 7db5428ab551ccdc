"""CondInst: a dense head, a controller, a mask branch and a dynamic mask head."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from condseg.models.backbones.base import FeatureExtractor
from condseg.models.heads.base import DenseHead
from condseg.models.mask.branch import MaskBranch
from condseg.models.mask.depth import DepthEncoder
from condseg.models.mask.head import DynamicMaskHead
from condseg.models.pyramids.base import Pyramid
from condseg.ops.locations import pyramid_locations
from condseg.structures import DensePredictions, MaskQueries, Size


class CondInst(nn.Module):
    """Computes dense predictions of images, and the masks of chosen locations.

    :func:`condseg.models.build_condinst` builds the parts to fit each other.

    Args:
        backbone: computes C3, C4, C5 and normalizes the images.
        pyramid: computes P3, P4, ... from these.
        head: predicts classes, boxes and the mask head's parameters at every location.
        mask_branch: computes the mask features from P3, P4, P5.
        mask_head: computes the masks of instances from the mask features.
        depth_encoder: computes the guide of the mask branch's filter from depth maps; None if the
            network takes no depth.

    Shape:
        images (B, 3, H, W) uint8 RGB, H and W multiples of 32, and, with a depth encoder, depth
        (B, H, W) -> :class:`DensePredictions`.

    Source:
        CondInst (ECCV 2020), figure 3. Depth as a guide of filters: HDFNet (ECCV 2020), here in
        the mask branch alone.
    """

    def __init__(
        self,
        backbone: FeatureExtractor,
        pyramid: Pyramid,
        head: DenseHead,
        mask_branch: MaskBranch,
        mask_head: DynamicMaskHead,
        depth_encoder: DepthEncoder | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pyramid = pyramid
        self.mask_head = mask_head
        self.head = head
        self.mask_branch = mask_branch
        self.depth_encoder = depth_encoder

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
            sizes: (height, width) of each image without its padding.
            depth: (B, H, W) distances in any unit, 0 in the padding and where nothing was
                measured; required if and only if the network takes depth.

        Raises:
            ValueError: depth is missing, or the network takes none.
        """
        if (depth is None) == self.takes_depth:
            raise ValueError(
                "the network takes depth (model.network.depth_channels), the batch has none"
                if self.takes_depth
                else "the batch has depth, the network takes none (model.network.depth_channels)"
            )
        return self.dense(self.backbone.prepare(images, sizes), depth)

    def dense(
        self, x: Float[Tensor, "b 3 h w"], depth: Float[Tensor, "b h w"] | None
    ) -> DensePredictions:
        """Dense predictions of normalized images; see :meth:`forward`."""
        maps = self.pyramid(self.backbone(x))
        head = self.head(maps)
        guide = None if self.depth_encoder is None else self.depth_encoder(depth)
        semantic = self.training and self.mask_branch.has_semantic_branch
        return DensePredictions(
            head,
            pyramid_locations(
                head.level_sizes,
                self.pyramid.strides,
                x.device,
                offset=self.head.location_offset,
            ),
            self.mask_branch(maps[:3], guide),
            (x.shape[2], x.shape[3]),
            self.mask_branch.semantic(maps[0]) if semantic else None,
        )

    def queries(
        self,
        dense: DensePredictions,
        image_index: Int64[Tensor, " p"],
        location_index: Int64[Tensor, " p"],
    ) -> MaskQueries:
        """The inputs of the mask head for P chosen locations, each of an image, 0..L-1."""
        features, points = dense.head.controller_features, dense.locations.points
        # The mask head's pixels are the centers of the cells of P3, wherever P3's locations are.
        center = self.mask_head.feature_stride // 2
        return MaskQueries(
            self.head.params_at(features, image_index, location_index),
            points[location_index] + (center - points[0]),
            dense.locations.size_of_interest[location_index],
            image_index,
        )

    def mask_logits(
        self,
        dense: DensePredictions,
        image_index: Int64[Tensor, " p"],
        location_index: Int64[Tensor, " p"],
    ) -> Float[Tensor, "p h4 w4"]:
        """Mask logits of P chosen locations; arguments as of :meth:`queries`."""
        queries = self.queries(dense, image_index, location_index)
        logits: Tensor = self.mask_head(dense.mask_features, queries)
        return logits
