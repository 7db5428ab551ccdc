"""Sizes of what is measured, and seeded inputs: images, objects, mask queries, random maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from condseg.data.files import TABLETOP
from condseg.data.images import read_image
from condseg.structures import Batch, ImageInfo, MaskQueries, Size, Targets
from studies.measure import Run

CLASSES = 80


@dataclass(frozen=True, slots=True)
class Shapes:
    """Sizes of networks and inputs; the defaults are those of the docs.

    Attributes:
        image: (height, width) in evaluation.
        detections: per image.
        candidates: locations and classes whose score passes the threshold, before NMS.
        backbone, width, channels: of the network.
        train, batch, objects: (height, width), images and objects per image in training.
        maps: (height, width) of the mask features.
        backward: instances of the mask head in training.
        instances: of the scaling curve.
        filters: batch, channels, height and width of HDFNet's filtering.
        classifier, classifier_side, classifier_batches: classification network and its images.
    """

    image: Size = (800, 1216)
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


QUICK = Shapes(
    image=(128, 192),
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
"""Small ones, to see that everything runs; their ratios say little."""


def image(size: Size) -> NDArray[np.uint8]:
    """(height, width, 3) RGB: an image of tabletop at that size."""
    small = read_image(TABLETOP / "val" / "000000.jpg")
    return np.asarray(cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC))


def batch(size: Size, count: int, objects: int = 0) -> Batch:
    """``count`` times the same image, each with other ellipses as objects."""
    pixels = torch.from_numpy(image(size).transpose(2, 0, 1).copy())
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
    """Mask logits (count, H, W) of ellipses anywhere, half axes of 2 to 25 % of the image."""
    height, width = size
    y, x = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
    centre = torch.rand(count, 2, 1, 1, generator=generator)
    half_axes = 0.02 * 12.5 ** torch.rand(count, 2, 1, 1, generator=generator)
    down = (y / height - centre[:, 0]) / half_axes[:, 0]
    right = (x / width - centre[:, 1]) / half_axes[:, 1]
    logits: Tensor = slope * (1 - (down**2 + right**2).sqrt())
    return logits


def mask_queries(
    count: int, maps: Size, num_params: int, device: torch.device, images: int = 1
) -> MaskQueries:
    """Random parameters of instances anywhere, distributed evenly over the images."""
    generator = torch.Generator().manual_seed(0)
    extent = 8.0 * torch.tensor([maps[1], maps[0]])
    index = torch.arange(count) * images // count
    return MaskQueries(
        (0.3 * torch.randn(count, num_params, generator=generator)).to(device),
        (torch.rand(count, 2, generator=generator) * extent).to(device),
        torch.full((count,), 64.0, device=device),
        index.to(device),
    )


def random_maps(*shape: int, device: torch.device, seed: int = 0) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


def pyramid_maps(size: Size, count: int, channels: int, device: torch.device) -> list[Tensor]:
    """Random maps of the levels P3 to P7."""
    levels = []
    for stride in (8, 16, 32, 64, 128):
        height, width = (-(-side // stride) for side in size)
        levels.append(random_maps(count, channels, height, width, device=device, seed=stride))
    return levels


def inference(call: Callable[..., Any], *args: Any) -> Run:
    """A run of the call without gradients."""

    def run() -> Any:
        with torch.inference_mode():
            return call(*args)

    return run


def gradients(
    call: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor] = (),
) -> Run:
    """A run of forward and backward: gradients of inputs and parameters for random cotangents."""
    cotangents: list[Tensor] = []  # computed in the first run, which is not measured

    def run() -> tuple[Tensor, ...]:
        leaves = [x.detach().requires_grad_() for x in inputs]
        outputs = call(*leaves)
        outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
        if not cotangents:
            for i, y in enumerate(outputs):
                cotangents.append(random_maps(*y.shape, device=y.device, seed=i))
        return torch.autograd.grad(outputs, [*leaves, *parameters], cotangents)

    return run
