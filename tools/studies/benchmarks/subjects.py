"""Networks of random weights that detect as many objects as trained ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.detection import maskrcnn_resnet50_fpn

from condseg.inference.predictor import Predictor
from condseg.layers import DynamicDilatedPyramid2d, ODConv2d
from condseg.models import (
    Backbone,
    CondInst,
    DynamicMaskHead,
    FCOSHead,
    PostProcess,
    build_condinst,
)
from condseg.structures import Category
from condseg.zoo.checkpoint import Restored
from studies.benchmarks.inputs import CLASSES, Shapes, batch
from studies.measure import Run
from studies.published import published_form, published_postprocess

ODCONV = partial(ODConv2d, num_experts=4)


def condinst(
    shapes: Shapes, device: torch.device, odconv: bool = False, filtered: bool = False
) -> CondInst:
    """CondInst of random weights, whose batch norms have the statistics of the image.

    Boxes reach about two strides to each side, and the controller's bias makes each mask a rhombus
    about its location with a border that the random weights roughen: masks of untrained networks
    would be noise.

    Args:
        odconv: a backbone of ODConv with four experts.
        filtered: HDFNet's filtering in the mask branch.
    """
    torch.manual_seed(0)
    conv, width = ODCONV if odconv else None, shapes.width
    backbone = Backbone(shapes.backbone, weights=None, conv=conv, width=width, stem_width=width)
    filter_ = DynamicDilatedPyramid2d if filtered else None
    network = build_condinst(backbone, CLASSES, shapes.channels, mask_filter=filter_)
    head = network.head
    assert isinstance(head, FCOSHead)
    with torch.no_grad():
        head.controller.get_parameter("bias").copy_(rhombus(network.mask_head))
        head.controller.weight.mul_(0.1)
        head.box_ltrb.get_parameter("bias").fill_(2.0)
    network.to(device).eval()
    images = batch(shapes.image, 1).images.to(device)
    calibrate_norms_(network, lambda: network(images, [shapes.image]))
    return network


def rhombus(head: DynamicMaskHead, radius: float = 0.4, slope: float = 20.0) -> Tensor:
    """Parameters of a mask head that computes slope (radius - |dx| - |dy|) in sizes of interest."""
    params = torch.zeros(1, head.num_params)
    (first, second, last), (_, _, offset) = head.parse(params)  # views of params
    for axis in (0, 1):
        first[0, 2 * axis, axis], first[0, 2 * axis + 1, axis] = 1.0, -1.0
    second[0, 0, :4] = 1.0
    last[0, 0, 0] = -slope
    offset.fill_(slope * radius)
    return params[0]


def calibrate_norms_(network: nn.Module, run: Callable[[], object]) -> None:
    """Set the batch norms' statistics to those of a run.

    With random weights the values otherwise grow from layer to layer until scores are 0 or 1.
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0
    with torch.no_grad():
        run()
    for norm, momentum in zip(norms, before, strict=True):
        norm.eval().momentum = momentum


def predictor(network: CondInst, shapes: Shapes, device: torch.device, **options: Any) -> Predictor:
    """The whole evaluation by a network.

    Scores of random weights mean nothing, so the threshold is set to let as many candidates pass
    as a trained model has at 0.05; NMS and the limit of detections are the defaults.
    ``options`` are further ones of the post-process.
    """
    with torch.inference_mode():
        dense = network(batch(shapes.image, 1).images.to(device), [shapes.image])
        scores = dense.head.scores(0)
    count = shapes.candidates
    postprocess = PostProcess(
        candidate_threshold=threshold(scores, count),
        max_detections=shapes.detections,
        pre_nms_topk=count,
        **options,
    )
    classes = tuple(Category(k + 1, f"class {k}") for k in range(CLASSES))
    sides = min(shapes.image), max(shapes.image)
    return Predictor(Restored(network, postprocess, classes, *sides, {}), str(device))


def threshold(scores: Tensor, candidates: int) -> float:
    """The score that so many scores are above."""
    return float(scores.flatten().topk(candidates + 1).values[-1])


def published(fast: Predictor) -> Predictor:
    """The same evaluation in the published form, with batch norms that are not folded."""
    other = copy.copy(fast)
    other.network = published_form(fast.restored.network)
    other.postprocess = published_postprocess(fast.postprocess)
    return other


def optimized(fast: Predictor, compiled: bool, mixed: bool) -> Predictor:
    """The same evaluation with the network compiled, in bfloat16 under autocast, or both."""
    other = copy.copy(fast)
    if compiled:
        other.network = copy.deepcopy(fast.network)
        other.network.compile()
    if mixed:
        other.precision = "bf16-mixed"
    return other


def mask_rcnn(shapes: Shapes, device: torch.device) -> Run:
    """torchvision's maskrcnn_resnet50_fpn: same image, number of candidates, NMS and limit.

    Its masks are thresholded, as ours are. Without weights it has plain batch norms, which are a
    little faster than the frozen ones of its published weights.
    """
    torch.manual_seed(0)
    model = maskrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=CLASSES + 1,
        min_size=min(shapes.image),
        max_size=max(shapes.image),
        box_nms_thresh=0.6,
        box_detections_per_img=shapes.detections,
    )
    model.to(device).eval()
    pixels = batch(shapes.image, 1).images.to(device)
    calibrate_norms_(model, lambda: model([pixels[0].float() / 255]))
    logits: list[Tensor] = []
    hook = model.roi_heads.box_predictor.register_forward_hook(
        lambda module, inputs, output: logits.append(output[0])
    )
    with torch.inference_mode():
        model([pixels[0].float() / 255])
    hook.remove()
    model.roi_heads.score_thresh = threshold(logits[0].softmax(1)[:, 1:], shapes.candidates)

    @torch.inference_mode()
    def run() -> list[dict[str, Tensor]]:
        detections: list[dict[str, Tensor]] = model([pixels[0].float() / 255])
        for each in detections:
            each["masks"] = (each["masks"] > 0.5).cpu()
        return detections

    assert len(run()[0]["masks"]) == shapes.detections
    return run
