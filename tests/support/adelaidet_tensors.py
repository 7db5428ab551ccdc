"""The tensors of AdelaiDet's CondInst and BoxInst with BiFPN.

Written from its public configurations and code and detectron2's, independently of condseg's modules
and renaming.
"""

from __future__ import annotations

Shapes = dict[str, tuple[int, ...]]

NODES = ("3_3_4", "2_2_5", "1_1_6", "0_0_7", "1_1_7_8", "2_2_6_9", "3_3_5_10", "4_4_11")
"""Of a BiFPN on five maps: the level, then the numbers of the maps that are merged."""
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
FROZEN = ("weight", "bias", "running_mean", "running_var")


def bifpn_shapes(depth: int, mask_features: int, semantic: bool, deformable: bool) -> Shapes:
    """Name and shape of each tensor.

    Args:
        depth: of the ResNet.
        mask_features: 8 for CondInst, 16 for BoxInst.
        semantic: whether there is a semantic branch.
        deformable: whether all blocks from res3 on are. AdelaiDet's public builder of a ResNet
            with a BiFPN ignores ``DEFORM_INTERVAL``.
    """
    shapes: Shapes = {}
    _resnet(shapes, "backbone.bottom_up.backbone", BLOCKS[depth], deformable)
    _norm(shapes, "backbone.bottom_up.res6.reduction", (160, 2048, 1, 1), counter=True)
    for repeat in range(6):
        name = f"backbone.repeated_bifpn.{repeat}"
        for i, channels in enumerate((512, 1024, 2048) if repeat == 0 else ()):
            _norm(shapes, f"{name}.lateral_{i}_f{i}", (160, channels, 1, 1), counter=True)
            shapes[f"{name}.lateral_{i}_f{i}.bias"] = (160,)
        for node in NODES:
            shapes[f"{name}.weights_f{node}"] = (node.count("_"),)
            _norm(shapes, f"{name}.outputs_f{node}", (160, 160, 3, 3), counter=True)
    _heads(shapes, 160, mask_features, semantic)
    return shapes


def _norm(shapes: Shapes, name: str, weight: tuple[int, ...], counter: bool) -> None:
    """A convolution with detectron2's norm inside of it."""
    shapes[f"{name}.weight"] = weight
    for part in FROZEN:
        shapes[f"{name}.norm.{part}"] = weight[:1]
    if counter:
        shapes[f"{name}.norm.num_batches_tracked"] = ()


def _resnet(shapes: Shapes, name: str, blocks: tuple[int, ...], deformable: bool) -> None:
    _norm(shapes, f"{name}.stem.conv1", (64, 3, 7, 7), counter=False)
    into = 64
    for stage, count in enumerate(blocks):
        width, out = 64 * 2**stage, 256 * 2**stage
        for i in range(count):
            block = f"{name}.res{stage + 2}.{i}"
            if i == 0:
                _norm(shapes, f"{block}.shortcut", (out, into, 1, 1), counter=False)
            _norm(shapes, f"{block}.conv1", (width, into, 1, 1), counter=False)
            _norm(shapes, f"{block}.conv2", (width, width, 3, 3), counter=False)
            if deformable and stage > 0:
                shapes[f"{block}.conv2_offset.weight"] = (27, width, 3, 3)
                shapes[f"{block}.conv2_offset.bias"] = (27,)
            _norm(shapes, f"{block}.conv3", (out, width, 1, 1), counter=False)
            into = out


def _heads(shapes: Shapes, channels: int, mask_features: int, semantic: bool) -> None:
    def conv(name: str, out: int, into: int = channels, kernel: int = 3) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, into, kernel, kernel), (out,)

    def block(name: str, into: int) -> None:
        shapes[f"{name}.0.weight"] = (128, into, 3, 3)
        for part in FROZEN:
            shapes[f"{name}.1.{part}"] = (128,)
        shapes[f"{name}.1.num_batches_tracked"] = ()

    head = "proposal_generator.fcos_head"
    for tower in ("cls_tower", "bbox_tower"):
        for i in range(4):
            conv(f"{head}.{tower}.{3 * i}", channels)
            norm = f"{head}.{tower}.{3 * i + 1}"
            shapes[f"{norm}.weight"], shapes[f"{norm}.bias"] = (channels,), (channels,)
    for name, out in (("cls_logits", 80), ("bbox_pred", 4), ("ctrness", 1)):
        conv(f"{head}.{name}", out)
    for level in range(5):
        shapes[f"{head}.scales.{level}.scale"] = (1,)
    conv("controller", (mask_features + 2) * 8 + 8 + 8 * 8 + 8 + 8 + 1)
    for level in range(3):
        block(f"mask_branch.refine.{level}", channels)
    for i in range(4):
        block(f"mask_branch.tower.{i}", 128)
    conv("mask_branch.tower.4", mask_features, 128, 1)
    if semantic:
        block("mask_branch.seg_head.0", channels)
        block("mask_branch.seg_head.1", 128)
        conv("mask_branch.logits", 80, 128, 1)
    shapes["mask_head.sizes_of_interest"], shapes["mask_head._iter"] = (5,), (1,)
