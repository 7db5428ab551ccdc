"""Handlers of the vectors of the detector: FCOS, masks, CondInst, BoxInst.

Above 300 lines: the handlers share the builders of targets and predictions.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from pycocotools.mask import decode
from studies.published import published_form
from torch import Tensor
from torchvision.ops import batched_nms
from vectors import Case, handles

from condseg.models import (
    CondInst,
    Criterion,
    DynamicMaskHead,
    FCOSLoss,
    MaskBranch,
    MaskLoss,
    PostProcess,
    SemanticLoss,
)
from condseg.ops import boxinst
from condseg.ops.boxes import centerness
from condseg.ops.locations import pyramid_locations
from condseg.ops.losses import dice_loss
from condseg.ops.masks import aligned_upsample, sample_at_stride
from condseg.structures import (
    Assignment,
    Batch,
    DensePredictions,
    FCOSPredictions,
    ImageInfo,
    Locations,
    MaskQueries,
    Targets,
)
from condseg.zoo.adelaidet import convert_adelaidet
from condseg.zoo.checkpoint import RECIPE, restore_content
from condseg.zoo.pretrained import convert

BOTH = {True, False}
BOXINST_STEPS = 5000
"""Steps of the pairwise loss's warm-up, of 10,000, in the vectors of whole networks."""


def unpack(bits: Tensor, width: int) -> Tensor:
    return torch.from_numpy(np.unpackbits(bits.numpy(), axis=-1))[..., :width].bool()


def read_targets(case: Case, count: int, size: tuple[int, int]) -> list[Targets]:
    """Boxes, classes and masks of each image; missing masks are empty."""
    targets = []
    for j in range(count):
        labels = case.inputs[f"classes_{j}"]
        if f"masks_{j}" in case.inputs:
            masks = unpack(case.inputs[f"masks_{j}"], size[1])
        else:
            masks = torch.zeros(len(labels), *size, dtype=torch.bool)
        targets.append(Targets(case.inputs[f"boxes_{j}"], labels, masks))
    return targets


def level_images_rows(flat: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
    """(B, L, ...) to the reference's order: level, then image, then location."""
    return torch.cat([part.flatten(0, 1) for part in flat.split([h * w for h, w in sizes], dim=1)])


def pyramid(case: Case) -> tuple[list[tuple[int, int]], Locations]:
    """The level sizes and locations of a case."""
    sizes = [(h, w) for h, w in case.args["level_hw"]]
    ranges = None
    if "sizes_of_interest" in case.args:
        *ranges, last = case.args["sizes_of_interest"]
        ranges = [*ranges, last, 2 * last]
    return sizes, pyramid_locations(sizes, case.args["strides"], sizes_of_interest=ranges)


def dense_predictions(
    case: Case, sizes: list[tuple[int, int]]
) -> tuple[FCOSPredictions, dict[str, Tensor]]:
    raw = {
        f"{kind}_{i}": case.inputs[f"{kind}_{i}"].clone().requires_grad_()
        for i in range(len(sizes))
        for kind in ("logits", "reg", "ctr")
    }

    def flat(kind: str) -> Tensor:
        maps = [raw[f"{kind}_{i}"].flatten(2) for i in range(len(sizes))]
        return torch.cat(maps, dim=2).transpose(1, 2)

    batch = len(raw["logits_0"])
    features = [torch.zeros(batch, 1, h, w) for h, w in sizes]
    return FCOSPredictions(flat("logits"), flat("reg"), features, flat("ctr").squeeze(2)), raw


def check_gradients_or_norms(case: Case, objective: Tensor, tensors: dict[str, Tensor]) -> None:
    names = [n for n in tensors if n in case.grad_in or n in case.grad_norm]
    grads = torch.autograd.grad(objective, [tensors[n] for n in names], allow_unused=True)
    for name, grad in zip(names, grads, strict=True):
        grad = torch.zeros_like(tensors[name]) if grad is None else grad
        if name in case.grad_in:
            case.check(f"grad_in.{name}", grad, rel=1e-4)
        if name in case.grad_norm:
            case.check(f"grad_norm.{name}", grad.norm(), rel=1e-4)


@handles(
    "fcos_targets_and_losses",
    options={
        "padded_hw": None,
        "num_classes": None,
        "n_images": None,
        "level_hw": None,
        "strides": None,
        "box_quality": {"ctrness", "iou"},
        "loc_loss_type": {"giou", "linear_iou", "iou"},
        "cls_normalizer": {"fg", "moving_fg", "all"},
        "pos_radius": None,
        "center_sample": BOTH,
        "center_from_masks": BOTH,
        "sizes_of_interest": None,
        "focal_alpha": None,
        "focal_gamma": None,
    },
    recorded={"gt_kinds", "losses", "num_pos"},
)
def fcos_targets_and_losses(case: Case) -> None:
    args = case.args
    sizes, locations = pyramid(case)
    padded = tuple(args["padded_hw"])
    targets = read_targets(case, args["n_images"], (padded[0], padded[1]))
    radius = args["pos_radius"]
    radius = radius if args["center_sample"] else None
    assign = FCOSLoss(radius=radius, center_from_masks=args["center_from_masks"]).assign
    assignment = assign(locations, targets, args["num_classes"])
    check_assignment(case, assignment, targets, sizes, locations)
    head, raw = dense_predictions(case, sizes)
    names = {"fg": "positives", "moving_fg": "moving_positives", "all": "locations"}
    losses = {}
    for quality in (
        {args["box_quality"], "iou"} if "loss_fcos_iou" in case.out else {args["box_quality"]}
    ):
        loss = FCOSLoss(
            alpha=args["focal_alpha"],
            gamma=args["focal_gamma"],
            box_loss=args["loc_loss_type"],
            box_quality="iou" if quality == "iou" else "centerness",
            class_normalizer=names[args["cls_normalizer"]],
        )
        losses[quality] = loss.losses(head, assignment)
    main = losses[args["box_quality"]]
    case.check("out.loss_fcos_cls", main["loss_cls"], rel=1e-5)
    case.check("out.loss_fcos_loc", main["loss_box"], rel=1e-5)
    for quality, name in (("ctrness", "loss_fcos_ctr"), ("iou", "loss_fcos_iou")):
        if name in case.out:
            case.check(f"out.{name}", losses[quality]["loss_centerness"], rel=1e-5)
    objective = torch.stack(list(main.values())).sum()
    check_gradients_or_norms(case, objective, raw)


def check_assignment(
    case: Case,
    assignment: Assignment,
    targets: list[Targets],
    sizes: list[tuple[int, int]],
    locations: Locations,
) -> None:
    labels = level_images_rows(assignment.labels, sizes)
    case.check("out.labels", labels)
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
    options={
        "level_hw": None,
        "num_classes": None,
        "strides": None,
        "score_thresh": None,
        "thresh_with_ctr": BOTH,
        "nms_thresh": None,
        "pre_nms_topk": None,
        "post_nms_topk": None,
    },
    recorded={"padded_hw", "image_sizes", "n_dets", "same_in_float64"},
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
        score_threshold=args["score_thresh"],
        threshold_with_centerness=args["thresh_with_ctr"],
        pre_nms_topk=args["pre_nms_topk"],
        nms_threshold=args["nms_thresh"],
        max_detections=args["post_nms_topk"],
    )
    for j in range(len(top)):
        with torch.no_grad():
            found = postprocess.candidates(dense, j)
        case.check(f"out.classes_{j}", found.labels)
        case.check(f"out.fpn_levels_{j}", locations.level[found.locations])
        case.check(f"out.locations_{j}", locations.points[found.locations])
        case.check(f"out.scores_{j}", found.scores, absolute=1e-6)
        case.check(f"out.boxes_{j}", found.boxes, absolute=1e-4)
        case.check(f"out.top_feat_{j}", top[j, found.locations])


@handles("ml_nms", options={"nms_thresh": None})
def ml_nms(case: Case) -> None:
    boxes, scores, classes = (case.inputs[name] for name in ("boxes", "scores", "classes"))
    case.check("out.keep", batched_nms(boxes, scores, classes, case.args["nms_thresh"]))


@handles("aligned_bilinear", options={"factor": None})
def aligned_bilinear(case: Case) -> None:
    x = case.inputs["x"].clone().requires_grad_()
    y = aligned_upsample(x, case.args["factor"])
    case.check("out.y", y, rel=1e-5)
    case.check_gradients((y * case.inputs["cot"]).sum(), {"x": x}, {}, rel=1e-4)


@handles(
    "dynamic_mask_head",
    options={
        "n_inst": None,
        "n_images": None,
        "in_channels": None,
        "channels": None,
        "num_layers": None,
        "disable_rel_coords": BOTH,
        "mask_feat_stride": None,
        "mask_out_stride": None,
        "num_gen_params": None,
        "weight_nums": None,
        "bias_nums": None,
        "sizes_of_interest": None,
    },
    recorded={"feat_hw"},
)
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
        features = case.inputs["mask_feats"].clone().requires_grad_()
        params = case.inputs["params"].clone().requires_grad_()
        images = case.inputs["im_inds"].long()
        queries = MaskQueries(params, case.inputs["locations"].float(), sizes, images)
        logits = head(features, queries)
        case.check("out.mask_logits", logits[:, None], rel=1e-5)
        for layer, (weight, bias) in enumerate(zip(*head.parse(params), strict=True)):
            if f"weight{layer}" in case.out:
                case.check(f"out.weight{layer}", weight)
                case.check(f"out.bias{layer}", bias)
        inputs = {"mask_feats": features, "params": params}
        objective = (logits[:, None] * case.inputs["cot"]).sum()
        gradients = torch.autograd.grad(objective, [features, params], retain_graph=True)
        dice = dice_loss(logits.sigmoid(), case.inputs["gt_masks"][:, 0])
        case.check("out.dice_per_instance", dice, rel=1e-5)
        case.check("out.loss_mask", dice.mean(), rel=1e-5)
        of_dice = torch.autograd.grad(dice.mean(), [features, params])
        for name, gradient, dice_gradient in zip(inputs, gradients, of_dice, strict=True):
            case.check(f"grad_in.{name}", gradient, rel=1e-4)
            case.check(f"grad_dice.{name}", dice_gradient, rel=1e-4)


RENAMED = {"seg_head": "semantic_tower", "logits": "semantic_logits"}


def our_name(name: str) -> str:
    head, _, rest = name.partition(".")
    return f"{RENAMED.get(head, head)}.{rest}"


@handles(
    "mask_branch",
    options={
        "feat_channels": None,
        "channels": None,
        "num_convs": None,
        "out_channels": None,
        "semantic_loss": BOTH,
        "mode": {"eval", "train"},
        "norm": {"BN", None},
        "num_classes": None,
        "n_images": None,
        "p3_hw": None,
        "in_features": None,
        "out_stride": {8},
        "grad_objective": {"sum(out.y*in.cot)", "sum(out.y*in.cot)+100*loss_sem"},
    },
)
def mask_branch(case: Case) -> None:
    args = case.args
    num_classes = args["num_classes"]
    branch = MaskBranch(
        args["feat_channels"],
        args["channels"],
        args["num_convs"],
        args["out_channels"],
        num_classes=num_classes if args["semantic_loss"] else None,
        norm="batch" if args["norm"] == "BN" else None,
    )
    parameters = {our_name(name): value for name, value in case.param.items()}
    if args["norm"] is None:
        # The original can leave the bias out as well; a bias of zero is the same.
        for name, bias in branch.named_parameters():
            if name.endswith(".0.bias"):
                parameters.setdefault(name, torch.zeros_like(bias))
    branch.load_state_dict(parameters, strict=True)
    branch.train(args["mode"] == "train")
    assert args["in_features"] == ["p3", "p4", "p5"]
    maps = {name: case.inputs[name].clone().requires_grad_() for name in args["in_features"]}
    y = branch(list(maps.values()))
    case.check("out.y", y, rel=1e-5)
    objective = (y * case.inputs["cot"]).sum()

    with_semantic = args["grad_objective"].endswith("+100*loss_sem")
    height, width = args["p3_hw"]
    targets = []
    for j in range(args["n_images"]):
        if f"gt_masks_{j}" not in case.inputs:
            continue
        masks = unpack(case.inputs[f"gt_masks_{j}"], args["out_stride"] * width)
        assert masks.shape[1] == args["out_stride"] * height
        labels = case.inputs[f"gt_classes_{j}"]
        targets.append(Targets(torch.zeros(len(labels), 4), labels, masks))
    if "loss_sem" in case.out:
        loss = SemanticLoss()(branch.semantic(maps["p3"]), targets, args["out_stride"])
        case.check("out.loss_sem", loss, rel=1e-5)
        if with_semantic:
            objective = objective + 100 * loss
    named = dict(branch.named_parameters())
    wanted = {f"grad_in.{n}": maps[n] for n in case.grad_in}
    wanted |= {f"grad_norm.{n}": named[our_name(n)] for n in case.grad_norm}
    grads = torch.autograd.grad(objective, list(wanted.values()), allow_unused=True)
    for (array, tensor), grad in zip(wanted.items(), grads, strict=True):
        grad = torch.zeros_like(tensor) if grad is None else grad
        case.check(array, grad.norm() if array.startswith("grad_norm") else grad, rel=1e-4)
    state = branch.state_dict()
    for name in case.out:
        if name.startswith("after."):
            case.check(f"out.{name}", state[our_name(name.removeprefix("after."))], absolute=1e-6)


@handles(
    "boxinst",
    options={
        "padded_hw": None,
        "image_hw": None,
        "mask_out_stride": None,
        "pairwise_size": None,
        "pairwise_dilation": None,
        "color_thresh": None,
        "bottom_pixels_removed": None,
        "original_height": None,
        "channel_order": {"BGR 0..255"},
    },
    recorded={"n_inst", "pixels_removed_at_input"},
)
def boxinst_losses(case: Case) -> None:
    args = case.args
    (height, width), (h, w) = args["padded_hw"], args["image_hw"]
    stride = args["mask_out_stride"]
    assert args["channel_order"] == "BGR 0..255"
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[:, :h, :w] = case.inputs["image"].flip(0)
    lab = boxinst.lab_at_stride(image, stride)
    case.check("out.lab", lab.permute(1, 2, 0), absolute=1e-3)
    removed = max(int(args["bottom_pixels_removed"] * h / args["original_height"]), 0)
    valid = torch.zeros(1, height, width, dtype=torch.bool)
    valid[:, : h - removed, :w] = True
    window = (args["pairwise_size"], args["pairwise_dilation"])
    similarity = boxinst.color_similarity(lab, sample_at_stride(valid, stride)[0], *window)
    case.check("out.color_similarity", similarity[None], absolute=1e-4)
    boxes = sample_at_stride(boxinst.box_masks(case.inputs["boxes"], (height, width)), stride)
    case.check("out.gt_bitmasks", boxes)

    logits = case.inputs["mask_logits"].clone().requires_grad_()
    projection = boxinst.projection_loss(logits[:, 0].sigmoid(), boxes).mean()
    case.check("out.loss_prj", projection, rel=1e-5)
    case.check("grad_prj.mask_logits", torch.autograd.grad(projection, logits)[0], rel=1e-4)
    weights = torch.ones(len(boxes), *similarity.shape, requires_grad=True)
    energy = torch.autograd.grad(boxinst.pairwise_loss(logits[:, 0], weights, *window), weights)[0]
    case.check("out.pairwise_map", energy, rel=1e-5)
    pairs = (similarity >= args["color_thresh"]) & boxes[:, None]
    case.check("out.pairwise_weight_sum", pairs.sum().float())
    pairwise = boxinst.pairwise_loss(logits[:, 0], pairs, *window) / pairs.sum().clamp(min=1)
    case.check("out.loss_pairwise", pairwise, rel=1e-5)
    case.check("grad_pairwise.mask_logits", torch.autograd.grad(pairwise, logits)[0], rel=1e-4)


@handles(
    "condinst",
    options={
        "depth": {18, 34, 50, 101},
        "stem_out": None,
        "res2_out": None,
        "width_per_group": None,
        "fpn_channels": None,
        "mask_branch_channels": None,
        "num_classes": None,
        "fcos_towers": None,
        "semantic_loss": BOTH,
        "topk_proposals_per_im": None,
        "disable_rel_coords": BOTH,
        "boxinst": BOTH,
        "frozen": None,
    },
    recorded={
        "n_dets",
        "float64_same_detections",
        "float64_max_box_diff",
        "mask_pixel_disagreement_f32_vs_f64",
        "losses",
        "losses_float64",
        "num_pos",
        "grad_norm_by_module",
    },
)
def condinst(case: Case) -> None:
    network = build_condinst(case)
    check_inference(case, network)
    check_training(case, network)


def build_condinst(case: Case) -> CondInst:
    """Through a file, as a user's checkpoint comes: its tensors tell the architecture."""
    args = case.args
    basic = args["depth"] < 50
    width = args["res2_out"] if basic else args["width_per_group"]
    if basic:
        assert args["width_per_group"] in (64, width)
    else:
        assert args["res2_out"] == 4 * width
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model_final.pth"
        torch.save({"model": dict(case.param) or case.companion(), "iteration": 89_999}, path)
        content = convert(path)
    network = content[RECIPE]["model"]["network"]
    assert network["backbone"] == {
        "name": f"resnet{args['depth']}",
        "weights": None,
        "style": "caffe",
        "width": width,
        "stem_width": args["stem_out"],
    }
    assert network["num_classes"] == args["num_classes"]
    assert network["channels"] == args["fpn_channels"]
    assert network["head"]["init_args"]["tower_convs"] == args["fcos_towers"]
    assert network["relative_coords"] != args.get("disable_rel_coords", False)
    assert network["mask_branch_channels"] == args["mask_branch_channels"]
    assert network["semantic_loss"] == args["semantic_loss"]
    return restore_content(content, case.name).network


def padded(image: Tensor) -> Tensor:
    """RGB of a blue-green-red image, zero-padded to multiples of 32."""
    h, w = image.shape[1:]
    return torch.nn.functional.pad(image.flip(0), (0, -w % 32, 0, -h % 32))


def check_mid(case: Case, values: dict[str, Tensor]) -> None:
    """Activations of image 0: whole maps, or their L2 norm and mean."""
    for name in case.mid:
        if name.startswith("norm."):
            case.check(f"mid.{name}", values[name.removeprefix("norm.")].norm(), rel=1e-3)
        elif name.startswith("mean."):
            value = values[name.removeprefix("mean.")]
            case.check(f"mid.{name}", value.mean(), absolute=1e-3 * float(value.abs().mean()))
        else:
            case.check(f"mid.{name}", values[name], rel=1e-3)


def level_maps(flat: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    parts = flat.split([h * w for h, w in sizes], dim=1)
    return [p.transpose(1, 2).unflatten(2, s) for p, s in zip(parts, sizes, strict=True)]


def count_inputs(case: Case, prefix: str) -> int:
    return sum(name.startswith(prefix) for name in case.inputs)


@torch.no_grad()
def check_inference(case: Case, network: CondInst) -> None:
    network.eval()
    postprocess = PostProcess()
    for j in range(count_inputs(case, "image_")):
        image = case.inputs[f"image_{j}"]
        size = (image.shape[1], image.shape[2])
        height, width = case.inputs[f"output_hw_{j}"].tolist()
        images = padded(image)[None]
        dense = network(images, [size])
        if j == 0 and len(case.mid):
            x = network.backbone.normalize(images) * padded(torch.ones_like(image))
            values = dict(
                zip(
                    ["p3", "p4", "p5", "p6", "p7"],
                    network.pyramid(network.backbone(x)),
                    strict=True,
                )
            )
            values["mask_feats"] = dense.mask_features
            head = dense.head
            ctr = head.centerness_logits[..., None]
            for kind, flat in (("logits", head.class_logits), ("reg", head.ltrb), ("ctr", ctr)):
                for level, value in enumerate(level_maps(flat, head.level_sizes)):
                    values[f"{kind}_{level}"] = value
            for level, value in enumerate(head.controller_features):
                values[f"controller_{level}"] = network.head.controller(value)
            check_mid(case, values)

        info = ImageInfo(j, "", (height, width), size)
        found = postprocess.to_original(postprocess.candidates(dense, 0), info)
        zeros = torch.zeros_like(found.locations)
        probabilities = network.mask_logits(dense, zeros, found.locations).sigmoid()
        [result] = postprocess(dense, [info], network.mask_logits)
        case.check(f"out.classes_{j}", result.labels)
        case.check(f"out.scores_{j}", result.scores, absolute=1e-4)
        case.check(f"out.boxes_{j}", result.boxes, absolute=0.02)
        case.check(f"out.locations_{j}", dense.locations.points[found.locations])
        case.check(f"out.fpn_levels_{j}", dense.locations.level[found.locations])
        for name in case.out:
            if name.startswith("mask_probs_first") and name.endswith(f"_{j}"):
                count = len(case.out[name])
                case.check(f"out.{name}", probabilities[:count], absolute=1e-3)
        strings = case.expected(f"out.masks_rle_{j}")
        expected = [
            decode({"size": [height, width], "counts": str(s).encode()}).astype(bool)
            for s in strings
        ]
        masks = torch.from_numpy(np.stack(expected)) if expected else result.masks
        areas = case.expected(f"out.mask_areas_{j}")
        assert torch.equal(masks.sum((1, 2)).float(), areas.float())
        wrong = (masks != result.masks).float().mean()
        assert wrong <= 1e-3, f"mask disagreement {wrong:.2g}"


def check_training(case: Case, network: CondInst) -> None:
    network.train()
    topk = case.args.get("topk_proposals_per_im", -1)
    boxinst = case.args.get("boxinst", False)
    mask_loss = MaskLoss(
        topk_proposals_per_image=topk if topk and topk > 0 else None,
        supervision="boxes" if boxinst else "masks",
    )
    mask_loss.boxinst.steps.fill_(BOXINST_STEPS - 1)
    semantic_loss = SemanticLoss() if case.args["semantic_loss"] else None
    criterion = Criterion(network.head.default_loss(), mask_loss, semantic_loss)
    count = count_inputs(case, "image_")
    images = [padded(case.inputs[f"image_{j}"]) for j in range(count)]
    height, width = max(i.shape[1] for i in images), max(i.shape[2] for i in images)
    batch = torch.zeros(count, 3, height, width, dtype=torch.uint8)
    targets, sizes = [], []
    for j, image in enumerate(images):
        batch[j, :, : image.shape[1], : image.shape[2]] = image
        h, w = case.inputs[f"image_{j}"].shape[1:]
        sizes.append((h, w))
        labels = case.inputs[f"gt_classes_{j}"]
        masks = torch.zeros(len(labels), height, width, dtype=torch.bool)
        if f"gt_masks_{j}" in case.inputs:
            known = unpack(case.inputs[f"gt_masks_{j}"], w)
            masks[:, :h, :w] = known & (not boxinst)
        targets.append(Targets(case.inputs[f"gt_boxes_{j}"], labels, masks))
    dense = network(batch, sizes)

    assign = network.head.default_loss().assign
    assignment = assign(dense.locations, targets, case.args["num_classes"])
    case.check("out.train_num_pos", (assignment.instance >= 0).sum())
    image, location = mask_loss.choose(dense.head, assignment)
    first = torch.tensor([0, *(len(t.labels) for t in targets)]).cumsum(0)
    object_index = first[image] + assignment.instance[image, location]
    levels, points = dense.locations.level[location], dense.locations.points[location]

    def rows(objects: Tensor, where: Tensor, level: Tensor) -> list[tuple[float, ...]]:
        columns = zip(objects.tolist(), where.tolist(), level.tolist(), strict=True)
        return sorted((o, *xy, lv) for o, xy, lv in columns)

    names = ("train_gt_inds", "train_pos_locations", "train_pos_levels")
    expected = [case.expected(f"out.{name}") for name in names]
    assert rows(object_index, points, levels) == rows(*expected)

    originals = [tuple(case.inputs[f"output_hw_{j}"].tolist()) for j in range(count)]
    pairs = zip(originals, sizes, strict=True)
    infos = tuple(ImageInfo(j, "", *pair) for j, pair in enumerate(pairs))
    losses = criterion(dense, Batch(batch, tuple(targets), infos), network.mask_logits)
    ours = {
        "loss_fcos_cls": "loss_cls",
        "loss_fcos_loc": "loss_box",
        "loss_fcos_ctr": "loss_centerness",
        "loss_mask": "loss_mask",
        "loss_prj": "loss_projection",
        "loss_pairwise": "loss_pairwise",
        "loss_sem": "loss_semantic",
    }
    for name, own in ours.items():
        if name in case.out:
            case.check(f"out.{name}", losses[own], rel=1e-4)
    assert len(losses) == sum(name in case.out for name in ours)
    torch.stack(list(losses.values())).sum().backward()

    gradients = {n: p.grad for n, p in network.named_parameters()}
    scales = {f"proposal_generator.fcos_head.scales.{i}.scale": i for i in range(5)}
    for name in case.grad_norm:
        if name in scales:
            assert gradients["head.scales"] is not None
            gradient = gradients["head.scales"][scales[name]]
        else:
            [own] = convert_adelaidet({name: torch.zeros(1)})
            gradient = gradients[own]
        assert gradient is not None, f"{name} has no gradient"
        rel = 3e-2 if "bottom_up" in name else 1e-2
        case.check(f"grad_norm.{name}", gradient.norm(), rel=rel)
    for name in case.args["frozen"]:
        [own] = convert_adelaidet({name: torch.zeros(1)})
        assert not dict(network.named_parameters())[own].requires_grad
