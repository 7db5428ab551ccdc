"""Golden handlers of the detector's parts: FCOS, masks, BoxInst."""

from __future__ import annotations

import numpy as np
import torch
from studies.published import published_form
from torch import Tensor
from torchvision.ops import batched_nms
from vectors import Case, handles

from condseg.models import DynamicMaskHead, FCOSLoss, MaskBranch, PostProcess, SemanticLoss
from condseg.ops import boxinst
from condseg.ops.boxes import centerness
from condseg.ops.locations import pyramid_locations
from condseg.ops.losses import dice_loss
from condseg.ops.masks import aligned_upsample, sample_at_stride
from condseg.structures import (
    Assignment,
    DensePredictions,
    FCOSPredictions,
    Locations,
    MaskQueries,
    Size,
    Targets,
)

BOTH = {True, False}


def read_targets(case: Case, count: int, size: Size, prefix: str = "") -> list[Targets]:
    """Boxes, classes and bit-packed masks of each image; what is not stored is zero."""
    targets = []
    for j in range(count):
        labels = case.inputs.get(f"{prefix}classes_{j}", torch.zeros(0, dtype=torch.long))
        boxes = case.inputs.get(f"{prefix}boxes_{j}", torch.zeros(len(labels), 4))
        masks = torch.zeros(len(labels), *size, dtype=torch.bool)
        if f"{prefix}masks_{j}" in case.inputs:
            bits = np.unpackbits(case.inputs[f"{prefix}masks_{j}"].numpy(), axis=-1)
            known = torch.from_numpy(bits)[..., : size[1]].bool()
            masks[:, : known.shape[1], : known.shape[2]] = known
        targets.append(Targets(boxes, labels, masks))
    return targets


def level_images_rows(flat: Tensor, sizes: list[Size]) -> Tensor:
    """(B, L, ...) to the reference's order: level, then image, then location."""
    return torch.cat([part.flatten(0, 1) for part in flat.split([h * w for h, w in sizes], dim=1)])


def pyramid(case: Case) -> tuple[list[Size], Locations]:
    """The level sizes and locations of a case."""
    sizes = [(h, w) for h, w in case.args["level_hw"]]
    ranges = None
    if "sizes_of_interest" in case.args:
        *ranges, last = case.args["sizes_of_interest"]
        ranges = [*ranges, last, 2 * last]
    return sizes, pyramid_locations(sizes, case.args["strides"], sizes_of_interest=ranges)


def dense_predictions(case: Case, sizes: list[Size]) -> tuple[FCOSPredictions, dict[str, Tensor]]:
    """The predictions, and the maps by the names of the inputs."""
    levels = range(len(sizes))
    raw = case.leaves(*(f"{kind}_{i}" for i in levels for kind in ("logits", "reg", "ctr")))

    def flat(kind: str) -> Tensor:
        return torch.cat([raw[f"{kind}_{i}"].flatten(2) for i in levels], 2).transpose(1, 2)

    features = [torch.zeros(len(raw["logits_0"]), 1, h, w) for h, w in sizes]
    return FCOSPredictions(flat("logits"), flat("reg"), features, flat("ctr").squeeze(2)), raw


QUALITIES = {"ctrness": "centerness", "iou": "iou"}
NORMALIZERS = {"fg": "positives", "moving_fg": "moving_positives", "all": "locations"}


@handles(
    "fcos_targets_and_losses",
    recorded={"gt_kinds", "losses", "num_pos"},
    box_quality=set(QUALITIES),
    loc_loss_type={"giou", "linear_iou", "iou"},
    cls_normalizer=set(NORMALIZERS),
    center_sample=BOTH,
    center_from_masks=BOTH,
)
def fcos_targets_and_losses(case: Case) -> None:
    args, quality = case.args, case.args["box_quality"]
    sizes, locations = pyramid(case)
    targets = read_targets(case, args["n_images"], tuple(args["padded_hw"]))
    radius = {True: args["pos_radius"], False: None}
    head, raw = dense_predictions(case, sizes)
    losses = {}
    for each in {quality, "iou"} if "loss_fcos_iou" in case.out else {quality}:
        loss = FCOSLoss(
            radius=radius[args["center_sample"]],
            center_from_masks=args["center_from_masks"],
            alpha=args["focal_alpha"],
            gamma=args["focal_gamma"],
            box_loss=args["loc_loss_type"],
            box_quality=QUALITIES[each],
            class_normalizer=NORMALIZERS[args["cls_normalizer"]],
        )
        assignment = loss.assign(locations, targets, args["num_classes"])
        losses[each] = loss.losses(head, assignment)
    check_assignment(case, assignment, targets, sizes, locations)
    case.check("out.loss_fcos_cls", losses[quality]["loss_cls"], rel=1e-5)
    case.check("out.loss_fcos_loc", losses[quality]["loss_box"], rel=1e-5)
    for each, name in (("ctrness", "loss_fcos_ctr"), ("iou", "loss_fcos_iou")):
        if name in case.out:
            case.check(f"out.{name}", losses[each]["loss_centerness"], rel=1e-5)
    case.check_gradients(torch.stack(list(losses[quality].values())).sum(), raw)


def check_assignment(
    case: Case,
    assignment: Assignment,
    targets: list[Targets],
    sizes: list[Size],
    locations: Locations,
) -> None:
    case.check("out.labels", level_images_rows(assignment.labels, sizes))
    positive = level_images_rows(assignment.instance >= 0, sizes)
    case.check("out.num_pos", positive.sum())
    case.check("out.pos_inds", positive.nonzero().squeeze(1))
    ltrb = level_images_rows(assignment.ltrb, sizes)[positive]
    expected = case.expected("out.reg_targets")[positive]
    torch.testing.assert_close(ltrb, expected, rtol=1e-6, atol=1e-6)
    if "centerness_targets" in case.out or case.args["box_quality"] == "ctrness":
        case.check("out.centerness_targets", centerness(ltrb), rel=1e-5)

    counts = torch.tensor([0, *(len(t.labels) for t in targets)]).cumsum(0)[:-1]
    instance = level_images_rows(assignment.instance + counts[:, None], sizes)
    assert torch.equal(instance[positive], case.expected("out.target_inds")[positive])
    levels = locations.level.expand(len(targets), -1)
    case.check("out.fpn_levels", level_images_rows(levels, sizes))
    images = torch.arange(len(targets))[:, None].expand(levels.shape)
    case.check("out.im_inds", level_images_rows(images, sizes))


@handles(
    "fcos_inference",
    recorded={"padded_hw", "image_sizes", "n_dets", "same_in_float64"},
    thresh_with_ctr=BOTH,
)
def fcos_inference(case: Case) -> None:
    args = case.args
    sizes, locations = pyramid(case)
    head, _ = dense_predictions(case, sizes)
    assert head.class_logits.shape[2] == args["num_classes"]
    dense = DensePredictions(head, locations, torch.zeros(len(head.ltrb), 1, 1, 1), (0, 0))
    tops = [case.inputs[f"top_{i}"].flatten(2) for i in range(len(sizes))]
    top = torch.cat(tops, dim=2).transpose(1, 2)
    postprocess = PostProcess(
        candidate_threshold=args["score_thresh"],
        threshold_with_centerness=args["thresh_with_ctr"],
        pre_nms_topk=args["pre_nms_topk"],
        nms_threshold=args["nms_thresh"],
        max_detections=args["post_nms_topk"],
    )
    with torch.no_grad():
        of_images = postprocess.candidates(dense)
    for j in range(len(top)):
        found = of_images[of_images.image == j]
        case.check(f"out.classes_{j}", found.labels)
        case.check(f"out.fpn_levels_{j}", locations.level[found.locations])
        case.check(f"out.locations_{j}", locations.points[found.locations])
        case.check(f"out.scores_{j}", found.scores, absolute=1e-6)
        case.check(f"out.boxes_{j}", found.boxes, absolute=1e-4)
        case.check(f"out.top_feat_{j}", top[j, found.locations])


@handles("ml_nms")
def ml_nms(case: Case) -> None:
    boxes, scores, classes = (case.inputs[name] for name in ("boxes", "scores", "classes"))
    case.check("out.keep", batched_nms(boxes, scores, classes, case.args["nms_thresh"]))


@handles("aligned_bilinear")
def aligned_bilinear(case: Case) -> None:
    inputs = case.leaves("x")
    y = aligned_upsample(inputs["x"], case.args["factor"])
    case.check("out.y", y, rel=1e-5)
    case.check_gradients((y * case.inputs["cot"]).sum(), inputs)


@handles("dynamic_mask_head", recorded={"feat_hw"}, disable_rel_coords=BOTH)
def dynamic_mask_head(case: Case) -> None:
    args = case.args
    shape = (len(case.inputs["params"]), len(case.inputs["mask_feats"]))
    assert (args["n_inst"], args["n_images"]) == shape
    sizes = torch.tensor(args["sizes_of_interest"]).float()[case.inputs["fpn_levels"].long()]
    fast = DynamicMaskHead(
        args["in_channels"],
        args["channels"],
        args["num_layers"],
        not args["disable_rel_coords"],
        args["mask_feat_stride"],
        args["mask_out_stride"],
    )
    for head in (fast, published_form(fast)):
        assert head.num_params == args["num_gen_params"]
        assert (head.weight_counts, head.bias_counts) == (args["weight_nums"], args["bias_nums"])
        inputs = case.leaves("mask_feats", "params")
        features, params = inputs.values()
        images = case.inputs["im_inds"].long()
        queries = MaskQueries(params, case.inputs["locations"].float(), sizes, images)
        logits = head(features, queries)
        case.check("out.mask_logits", logits[:, None], rel=1e-5)
        for layer, (weight, bias) in enumerate(zip(*head.parse(params), strict=True)):
            if f"weight{layer}" in case.out:
                case.check(f"out.weight{layer}", weight)
                case.check(f"out.bias{layer}", bias)
        case.check_gradients((logits[:, None] * case.inputs["cot"]).sum(), inputs)
        dice = dice_loss(logits.sigmoid(), case.inputs["gt_masks"][:, 0])
        case.check("out.dice_per_instance", dice, rel=1e-5)
        case.check("out.loss_mask", dice.mean(), rel=1e-5)
        case.check_gradients(dice.mean(), inputs, ["grad_dice"])


RENAMED = {"seg_head": "semantic_tower", "logits": "semantic_logits"}


def our_name(name: str) -> str:
    head, _, rest = name.partition(".")
    return f"{RENAMED.get(head, head)}.{rest}"


@handles(
    "mask_branch",
    semantic_loss=BOTH,
    mode={"eval", "train"},
    norm={"BN", None},
    out_stride={8},
    grad_objective={"sum(out.y*in.cot)", "sum(out.y*in.cot)+100*loss_sem"},
)
def mask_branch(case: Case) -> None:
    args = case.args
    classes = args["num_classes"]
    branch = MaskBranch(
        args["feat_channels"],
        args["channels"],
        args["num_convs"],
        args["out_channels"],
        num_classes=classes if args["semantic_loss"] else None,
        norm="batch" if args["norm"] == "BN" else None,
    )
    # The original can leave the bias out without a norm as well; a bias of zero is the same.
    biases = {n: torch.zeros_like(b) for n, b in branch.state_dict().items() if ".0.bias" in n}
    parameters = {our_name(name): value for name, value in case.param.items()}
    branch.load_state_dict((biases if args["norm"] is None else {}) | parameters, strict=True)
    branch.train(args["mode"] == "train")
    assert args["in_features"] == ["p3", "p4", "p5"]
    maps = case.leaves(*args["in_features"])
    y = branch(list(maps.values()))
    case.check("out.y", y, rel=1e-5)
    objective = (y * case.inputs["cot"]).sum()
    (h, w), stride = args["p3_hw"], args["out_stride"]
    targets = read_targets(case, args["n_images"], (stride * h, stride * w), "gt_")
    factor = 100 if args["grad_objective"].endswith("+100*loss_sem") else 0
    if "loss_sem" in case.out:
        loss = SemanticLoss()(branch.semantic(maps["p3"]), targets, stride)
        case.check("out.loss_sem", loss, rel=1e-5)
        objective = objective + factor * loss
    named = dict(branch.named_parameters())
    named = {name: named[our_name(name)] for name in case.param if our_name(name) in named}
    case.check_gradients(objective, maps | named)
    state = branch.state_dict()
    for name in case.out:
        if name.startswith("after."):
            case.check(f"out.{name}", state[our_name(name.removeprefix("after."))], absolute=1e-6)


@handles("boxinst", recorded={"n_inst", "pixels_removed_at_input"}, channel_order={"BGR 0..255"})
def boxinst_losses(case: Case) -> None:
    args = case.args
    (height, width), (h, w) = args["padded_hw"], args["image_hw"]
    stride = args["mask_out_stride"]
    images = torch.zeros(1, 3, height, width, dtype=torch.uint8)
    images[0, :, :h, :w] = case.inputs["image"].flip(0)
    lab = boxinst.lab_at_stride(images, stride)
    case.check("out.lab", lab[0].permute(1, 2, 0), absolute=1e-3)
    removed = max(int(args["bottom_pixels_removed"] * h / args["original_height"]), 0)
    valid = torch.zeros(1, height, width, dtype=torch.bool)
    valid[:, : h - removed, :w] = True
    window = (args["pairwise_size"], args["pairwise_dilation"])
    similarity = boxinst.color_similarity(lab, sample_at_stride(valid, stride), *window)
    case.check("out.color_similarity", similarity, absolute=1e-4)
    boxes = sample_at_stride(boxinst.box_masks(case.inputs["boxes"], (height, width)), stride)
    case.check("out.gt_bitmasks", boxes)

    inputs = case.leaves("mask_logits")
    logits = inputs["mask_logits"]
    projection = boxinst.projection_loss(logits[:, 0].sigmoid(), boxes).mean()
    case.check("out.loss_prj", projection, rel=1e-5)
    case.check_gradients(projection, inputs, ["grad_prj"])
    weights = torch.ones(len(boxes), *similarity.shape[1:], requires_grad=True)
    energy = torch.autograd.grad(boxinst.pairwise_loss(logits[:, 0], weights, *window), weights)[0]
    case.check("out.pairwise_map", energy, rel=1e-5)
    pairs = (similarity >= args["color_thresh"]) & boxes[:, None]
    case.check("out.pairwise_weight_sum", pairs.sum().float())
    pairwise = boxinst.pairwise_loss(logits[:, 0], pairs, *window) / pairs.sum().clamp(min=1)
    case.check("out.loss_pairwise", pairwise, rel=1e-5)
    case.check_gradients(pairwise, inputs, ["grad_pairwise"])
