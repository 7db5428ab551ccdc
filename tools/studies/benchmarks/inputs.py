"""Seeded inputs: an image, batches with objects, mask queries, random maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
