"""What is measured: networks of random weights that find things, pictures, masks, filters."""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.detection import maskrcnn_resnet50_fpn

from condseg.data.files import TABLETOP
from condseg.data.images import read_image
from condseg.inference.predictor import Predictor
from condseg.layers import DynamicDilatedPyramid2d, ODConv2d, set_implementation
from condseg.models.backbones.backbone import Backbone
from condseg.models.condinst import CondInst
from condseg.models.heads.fcos import FCOSHead
from condseg.models.postprocess import PostProcess
from condseg.structures import Batch, Category, ImageInfo, MaskQueries, Size, Targets
from condseg.zoo.checkpoint import Restored

CLASSES = 80
ODCONV = functools.partial(ODConv2d, num_experts=4)


@dataclass(frozen=True, slots=True)
class Shapes:
    """Sizes of everything; the defaults are those of the table.

    Attributes:
        picture: (height, width) in evaluation.
        detections: objects found in a picture.
        candidates: locations and classes whose score passes, before NMS.
        backbone, width, channels: of the network.
        train, batch, objects: (height, width), pictures and objects a picture in training.
        maps: (height, width) of the mask features.
        backward: instances of the mask head in training.
        instances: of the scaling curve.
        filters: batch, channels, height and width of the filtering.
        classifier, classifier_side, classifier_batches: the network made dynamic, its pictures.
    """

    picture: Size = (800, 1216)
    detections: int = 100
    candidates: int = 1000
    backbone: str = "resnet50"
    width: int = 64
    channels: int = 256
    train: Size = (512, 512)
    batch: int = 2
    objects: int = 8
    maps: Size = (100, 152)
    backward: tuple[int, int] = (64, 500)
    instances: tuple[int, ...] = (1, 10, 100, 500, 2000)
    filters: tuple[int, int, int, int] = (4, 64, 64, 64)
    classifier: str = "resnet50"
    classifier_side: int = 224
    classifier_batches: tuple[int, int] = (8, 1)

    @classmethod
    def quick(cls) -> Shapes:
        """Small ones, to see in a minute that everything runs; their ratios say little."""
        return cls(
            picture=(128, 192),
            detections=10,
            candidates=100,
            backbone="resnet18",
            width=8,
            channels=64,
            train=(64, 64),
            objects=2,
            maps=(16, 24),
            backward=(4, 16),
            instances=(1, 4),
            filters=(2, 4, 8, 8),
            classifier="resnet18",
            classifier_side=64,
            classifier_batches=(2, 1),
        )


def condinst(
    shapes: Shapes, device: torch.device, odconv: bool = False, filtered: bool = False
) -> CondInst:
    """CondInst of random weights; its norms have the statistics of :func:`picture`.

    Boxes reach about two strides to each side, and the controller's bias makes each mask head
    draw a rhombus about its location, which the random weights roughen: masks with borders like
    those of objects, where untrained ones would be noise.

    Args:
        shapes: sizes.
        device: where it is put.
        odconv: a backbone of ODConv with four experts.
        filtered: HDFNet's filtering in the mask branch.
    """
    torch.manual_seed(0)
    network = CondInst(
        Backbone(
            shapes.backbone,
            weights=None,
            conv=ODCONV if odconv else None,
            width=shapes.width,
            stem_width=shapes.width,
        ),
        CLASSES,
        shapes.channels,
        mask_filter=DynamicDilatedPyramid2d if filtered else None,
    )
    head = network.head
    assert isinstance(head, FCOSHead)
    bias, boxes = head.controller.bias, head.box_ltrb.bias
    assert bias is not None
    assert boxes is not None
    with torch.no_grad():
        bias.copy_(rhombus(network))
        head.controller.weight.mul_(0.1)
        boxes.fill_(2.0)
    network.to(device).eval()
    images = batch(shapes.picture, 1).images.to(device)
    settle(network, lambda: network(images, [shapes.picture]))
    return network


def rhombus(network: CondInst, radius: float = 0.4, slope: float = 20.0) -> Tensor:
    """Parameters of a mask head that computes slope (radius - |dx| - |dy|) in sizes of interest."""
    head = network.mask_head
    params = torch.zeros(1, head.num_params)
    (first, second, last), (_, _, offset) = head.parse(params)  # views of params
    for axis in (0, 1):
        first[0, 2 * axis, axis], first[0, 2 * axis + 1, axis] = 1.0, -1.0
    second[0, 0, :4] = 1.0
    last[0, 0, 0] = -slope
    offset.fill_(slope * radius)
    return params[0]


def settle(network: nn.Module, run: Callable[[], object]) -> None:
    """Give the batch norms the statistics of what a run sends through them.

    Random weights otherwise let the values grow from layer to layer until scores are 0 or 1.
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0
    with torch.no_grad():
        run()
    for norm, momentum in zip(norms, before, strict=True):
        norm.eval().momentum = momentum


def predictor(network: CondInst, shapes: Shapes, device: torch.device) -> Predictor:
    """The whole evaluation by a network, with the threshold that lets the candidates pass.

    Scores of random weights mean nothing, so the threshold is put where a picture has as many
    candidates as a trained model at 0.05 has; NMS and the limit of detections are the usual ones.
    """
    with torch.inference_mode():
        dense = network(batch(shapes.picture, 1).images.to(device), [shapes.picture])
        scores = dense.class_logits.sigmoid() * dense.centerness_logits.sigmoid()[..., None]
    limits = PostProcess(
        threshold(scores, shapes.candidates),
        max_detections=shapes.detections,
        pre_nms_topk=shapes.candidates,
    )
    classes = tuple(Category(k + 1, f"class {k}") for k in range(CLASSES))
    sides = min(shapes.picture), max(shapes.picture)
    return Predictor(Restored(network, limits, classes, *sides, {}), str(device))


def threshold(scores: Tensor, candidates: int) -> float:
    """The score that so many are above."""
    return float(scores.flatten().topk(candidates + 1).values[-1])


def referenced(made: Predictor) -> Predictor:
    """The same in the plain published form."""
    other = copy.copy(made)
    other.network = copy.deepcopy(made.restored.network)  # its norms are as they were
    set_implementation(other.network, "reference")
    return other


def mixed(made: Predictor) -> Predictor:
    """The same in bfloat16 where that is safe."""
    other = copy.copy(made)
    other.precision = "bf16-mixed"
    return other


def compiled(made: Predictor) -> Predictor:
    """The same with the network compiled."""
    other = copy.copy(made)
    other.network = copy.deepcopy(made.network)
    other.network.compile()
    return other


def mask_rcnn(shapes: Shapes, device: torch.device) -> Callable[[], list[dict[str, Tensor]]]:
    """torchvision's maskrcnn_resnet50_fpn on :func:`picture`: same size, candidates, NMS, limit.

    Its masks are thresholded, as ours are. It has plain batch norms, as torchvision builds it
    without weights, which are a little faster than the frozen ones of its published weights.
    """
    torch.manual_seed(0)
    model = maskrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=CLASSES + 1,
        min_size=min(shapes.picture),
        max_size=max(shapes.picture),
        box_nms_thresh=0.6,
        box_detections_per_img=shapes.detections,
    )
    model.to(device).eval()
    pixels = batch(shapes.picture, 1).images.to(device)
    settle(model, lambda: model([pixels[0].float() / 255]))
    given: list[Tensor] = []
    hook = model.roi_heads.box_predictor.register_forward_hook(
        lambda module, inputs, output: given.append(output[0])
    )
    with torch.inference_mode():
        model([pixels[0].float() / 255])
    hook.remove()
    model.roi_heads.score_thresh = threshold(given[0].softmax(1)[:, 1:], shapes.candidates)

    @torch.inference_mode()
    def run() -> list[dict[str, Tensor]]:
        found: list[dict[str, Tensor]] = model([pixels[0].float() / 255])
        for each in found:
            each["masks"] = (each["masks"] > 0.5).cpu()
        return found

    count = len(run()[0]["masks"])
    if count != shapes.detections:
        raise RuntimeError(f"{count} detections where {shapes.detections} were to be compared")
    return run


def picture(size: Size) -> NDArray[np.uint8]:
    """(height, width, 3) RGB: one of tabletop's pictures at that size."""
    small = read_image(TABLETOP / "val" / "000000.jpg")
    return np.asarray(cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC))


def picture_file(size: Size) -> Path:
    """:func:`picture` as a JPEG of its own in the system's temporary folder."""
    with tempfile.NamedTemporaryFile(suffix=".jpg", delete=False) as file:
        path = Path(file.name)
    cv2.imwrite(str(path), picture(size)[..., ::-1])
    return path


def batch(size: Size, count: int, objects: int = 0) -> Batch:
    """So many times the same picture, each with ellipses as objects; everything is seeded."""
    pixels = torch.from_numpy(picture(size).transpose(2, 0, 1).copy())
    generator = torch.Generator().manual_seed(0)
    targets = []
    for _ in range(count):
        masks = ellipses(objects, size, generator) > 0
        boxes = torch.zeros(objects, 4)
        for box, mask in zip(boxes, masks, strict=True):
            y, x = mask.nonzero(as_tuple=True)
            box[:] = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1])
        labels = torch.randint(CLASSES, (objects,), generator=generator)
        targets.append(Targets(boxes, labels, masks))
    infos = tuple(ImageInfo(i, f"{i}.jpg", size, size) for i in range(count))
    return Batch(pixels.expand(count, -1, -1, -1).contiguous(), tuple(targets), infos)


def ellipses(count: int, size: Size, generator: torch.Generator, slope: float = 10.0) -> Tensor:
    """Mask logits (count, H, W) of ellipses anywhere, half axes of 2 to 25 % of the picture."""
    height, width = size
    y, x = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
    place = torch.rand(count, 2, 1, 1, generator=generator)
    reach = 0.02 * 12.5 ** torch.rand(count, 2, 1, 1, generator=generator)
    down = (y / height - place[:, 0]) / reach[:, 0]
    right = (x / width - place[:, 1]) / reach[:, 1]
    logits: Tensor = slope * (1 - (down**2 + right**2).sqrt())
    return logits


def mask_queries(
    count: int, maps: Size, num_params: int, device: torch.device, pictures: int = 1
) -> MaskQueries:
    """Random parameters of instances anywhere, shared evenly by the pictures."""
    generator = torch.Generator().manual_seed(0)
    extent = 8.0 * torch.tensor([maps[1], maps[0]])
    index = torch.arange(count) * pictures // count
    return MaskQueries(
        (0.3 * torch.randn(count, num_params, generator=generator)).to(device),
        (torch.rand(count, 2, generator=generator) * extent).to(device),
        torch.full((count,), 64.0, device=device),
        index.to(device),
        torch.full((count,), -1, device=device),
    )


def random_maps(*shape: int, device: torch.device, seed: int = 0) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


def pyramid(size: Size, count: int, channels: int, device: torch.device) -> Sequence[Tensor]:
    """Random maps of the levels P3 to P7."""
    levels = []
    for stride in (8, 16, 32, 64, 128):
        height, width = (-(-side // stride) for side in size)
        levels.append(random_maps(count, channels, height, width, device=device, seed=stride))
    return levels


def inference(run: Callable[[], Any]) -> Callable[[], Any]:
    """Without gradients."""

    def without() -> Any:
        with torch.inference_mode():
            return run()

    return without
