"""Golden handler of whole networks: detections, losses and gradients."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from ops_detector import BOTH, read_targets
from pycocotools.mask import decode
from torch import Tensor
from vectors import Case, handles

from condseg.models import CondInst, Criterion, MaskLoss, PostProcess, SemanticLoss
from condseg.structures import Batch, ImageInfo, Size
from condseg.zoo.adelaidet import convert_adelaidet
from condseg.zoo.checkpoint import RECIPE, restore_content
from condseg.zoo.pretrained import convert

BOXINST_STEPS = 5000
"""Steps of the pairwise loss's warm-up, of 10,000, in the vectors of whole networks."""

LOSSES = {
    "loss_fcos_cls": "loss_cls",
    "loss_fcos_loc": "loss_box",
    "loss_fcos_ctr": "loss_centerness",
    "loss_mask": "loss_mask",
    "loss_prj": "loss_projection",
    "loss_pairwise": "loss_pairwise",
    "loss_sem": "loss_semantic",
}


@handles(
    "condinst",
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
    depth={18, 34, 50, 101},
    semantic_loss=BOTH,
    disable_rel_coords=BOTH,
    boxinst=BOTH,
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
    return F.pad(image.flip(0), (0, -w % 32, 0, -h % 32))


def check_mid(case: Case, values: dict[str, Tensor]) -> None:
    """Activations of image 0: whole maps, or their L2 norm and mean."""
    for name in case.group("mid"):
        if name.startswith("norm."):
            case.check(f"mid.{name}", values[name.removeprefix("norm.")].norm(), rel=1e-3)
        elif name.startswith("mean."):
            value = values[name.removeprefix("mean.")]
            case.check(f"mid.{name}", value.mean(), absolute=1e-3 * float(value.abs().mean()))
        else:
            case.check(f"mid.{name}", values[name], rel=1e-3)


def level_maps(flat: Tensor, sizes: Sequence[Size]) -> list[Tensor]:
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
        if j == 0 and case.group("mid"):
            x = network.backbone.normalize(images) * padded(torch.ones_like(image))
            maps = network.pyramid(network.backbone(x))
            values = {f"p{level}": value for level, value in enumerate(maps, 3)}
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
        found = postprocess.to_original(postprocess.candidates(dense), [info])
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
    topk, boxinst = case.args.get("topk_proposals_per_im", -1), case.args.get("boxinst", False)
    mask_loss = MaskLoss(
        topk_proposals_per_image=topk if topk and topk > 0 else None,
        supervision="boxes" if boxinst else "masks",
    )
    mask_loss.boxinst.steps.fill_(BOXINST_STEPS - 1)
    semantic_loss = SemanticLoss() if case.args["semantic_loss"] else None
    dense_loss = network.head.default_loss()
    criterion = Criterion(dense_loss, mask_loss, semantic_loss)
    count = count_inputs(case, "image_")
    images = [padded(case.inputs[f"image_{j}"]) for j in range(count)]
    height, width = max(i.shape[1] for i in images), max(i.shape[2] for i in images)
    images = [F.pad(i, (0, width - i.shape[2], 0, height - i.shape[1])) for i in images]
    targets = read_targets(case, count, (height, width), "gt_")
    for target in targets:
        target.masks[:] &= not boxinst
    infos = []
    for j in range(count):
        h, w = case.inputs[f"image_{j}"].shape[1:]
        infos.append(ImageInfo(j, "", tuple(case.inputs[f"output_hw_{j}"].tolist()), (h, w)))
    batch = Batch(torch.stack(images), tuple(targets), tuple(infos))
    dense = network(batch.images, batch.sizes)

    assignment = dense_loss.assign(dense.locations, targets, case.args["num_classes"])
    case.check("out.train_num_pos", (assignment.instance >= 0).sum())
    image, location = mask_loss.choose(dense.head, assignment)
    first = torch.tensor([0, *(len(t.labels) for t in targets)]).cumsum(0)
    object_index = first[image] + assignment.instance[image, location]
    chosen = (object_index, dense.locations.points[location], dense.locations.level[location])
    names = ("train_gt_inds", "train_pos_locations", "train_pos_levels")
    expected = [case.expected(f"out.{name}") for name in names]
    assert sorted(torch.column_stack(chosen).tolist()) == sorted(
        torch.column_stack(expected).tolist()
    )

    losses = criterion(dense, batch, network.mask_logits)
    for name, own in LOSSES.items():
        if name in case.out:
            case.check(f"out.{name}", losses[own], rel=1e-4)
    assert len(losses) == sum(name in case.out for name in LOSSES)
    torch.stack(list(losses.values())).sum().backward()

    parameters = dict(network.named_parameters())
    scales = {f"proposal_generator.fcos_head.scales.{i}.scale": i for i in range(5)}
    for name in case.group("grad_norm"):
        if name in scales:
            gradient = parameters["head.scales"].grad[scales[name]]
        else:
            [own] = convert_adelaidet({name: torch.zeros(1)})
            gradient = parameters[own].grad
        assert gradient is not None, f"{name} has no gradient"
        rel = 3e-2 if "bottom_up" in name else 1e-2
        case.check(f"grad_norm.{name}", gradient.norm(), rel=rel)
    for name in case.args["frozen"]:
        [own] = convert_adelaidet({name: torch.zeros(1)})
        assert not parameters[own].requires_grad
