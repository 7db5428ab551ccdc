"""CondInst from a configuration: parts that fit each other."""

from __future__ import annotations

from condseg.layers.parts import check_count, positive
from condseg.models.backbones.backbone import Backbone
from condseg.models.condinst import CondInst
from condseg.models.heads.base import HeadFactory
from condseg.models.heads.fcos import FCOSHead
from condseg.models.mask.branch import MaskBranch, MaskBranchFactory, MaskFilter
from condseg.models.mask.depth import DepthEncoder
from condseg.models.mask.head import DynamicMaskHead
from condseg.models.mask.rtmdet import MaskHeadFactory
from condseg.models.pyramids.base import PyramidFactory
from condseg.models.pyramids.fpn import FPN


def build_condinst(
    backbone: Backbone,
    num_classes: int,
    channels: int = 256,
    pyramid: PyramidFactory = FPN,
    head: HeadFactory = FCOSHead,
    mask_branch: MaskBranchFactory = MaskBranch,
    mask_head: MaskHeadFactory = DynamicMaskHead,
    mask_branch_channels: int = 128,
    mask_branch_convs: int = 4,
    mask_features: int = 8,
    mask_head_channels: int = 8,
    mask_head_layers: int = 3,
    relative_coords: bool = True,
    semantic_loss: bool = False,
    mask_filter: MaskFilter | None = None,
    depth_channels: int | None = None,
) -> CondInst:
    """Build CondInst; a configuration's ``model.network`` has these arguments.

    Args:
        backbone: computes C3, C4, C5.
        num_classes: K.
        channels: of the pyramid and the head; FCOS's head supports 64, 96, 128, ...
        pyramid: class of the feature pyramid, :class:`FPN`, :class:`BiFPN` or :class:`PAFPN`.
        head: class of the dense head, :class:`FCOSHead` or :class:`RTMDetHead`.
        mask_branch: class of the mask branch, :class:`MaskBranch` or :class:`ConcatMaskBranch`.
        mask_head: class of the dynamic mask head, :class:`DynamicMaskHead` or
            :class:`RTMDetMaskHead`.
        mask_branch_channels: width of the mask branch.
        mask_branch_convs: its 3x3 convolutions after the levels are joined.
        mask_features: channels of the mask features.
        mask_head_channels: hidden channels of the dynamic mask head.
        mask_head_layers: its layers.
        relative_coords: whether relative coordinates are an input of the mask head.
        semantic_loss: whether there is a semantic branch, for the auxiliary loss in training.
        mask_filter: class of the dynamic filter in the mask branch.
        depth_channels: width of the depth encoder, whose features then guide the filter; None for
            a network that takes no depth.

    Raises:
        ValueError: a number is outside its range, or there is no ``mask_filter`` to guide.
    """
    positive(num_classes=num_classes, channels=channels, mask_branch_channels=mask_branch_channels)
    positive(mask_features=mask_features, mask_head_channels=mask_head_channels)
    check_count(0, mask_branch_convs=mask_branch_convs)
    check_count(mask_head_layers=mask_head_layers)
    if depth_channels is not None and mask_filter is None:
        raise ValueError(
            f"depth_channels is {depth_channels}, but there is no mask_filter for depth to guide; "
            "set mask_filter (condseg.layers.DynamicDilatedPyramid2d), or depth_channels to null"
        )
    built_pyramid = pyramid(backbone.out_channels, channels)
    built_mask_head = mask_head(
        mask_features, mask_head_channels, mask_head_layers, relative_coords
    )
    num_params = built_mask_head.num_params
    built_head = head(channels, num_classes, num_params, len(built_pyramid.strides))
    built_branch = mask_branch(
        channels,
        mask_branch_channels,
        mask_branch_convs,
        mask_features,
        num_classes if semantic_loss else None,
        mask_filter,
        depth_channels,
    )
    depth_encoder = None if depth_channels is None else DepthEncoder(depth_channels)
    return CondInst(
        backbone, built_pyramid, built_head, built_branch, built_mask_head, depth_encoder
    )
