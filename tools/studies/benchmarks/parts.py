"""The dynamic parts alone: mask head, post-process, FCOS head with controller, local filters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from condseg.layers.local_filter import filter_locally
from condseg.models import DynamicMaskHead, FCOSHead, PostProcess
from condseg.structures import ImageInfo, MaskQueries, Size
from studies.benchmarks.compare import FAST, PUBLISHED, Comparison, Line
from studies.benchmarks.inputs import (
    CLASSES,
    ellipses,
    gradients,
    inference,
    mask_queries,
    pyramid_maps,
    random_maps,
)
from studies.benchmarks.session import Curves
from studies.benchmarks.shapes import Shapes
from studies.measure import Run
from studies.published import published_form, published_postprocess
from studies.published.layers import filter_unfolded


def comparisons(shapes: Shapes, device: torch.device) -> list[Comparison]:
    """The lines of the table about the dynamic parts."""
    few, many = shapes.backward
    count, (h, w) = shapes.detections, shapes.maps
    masks = f"{count} masks to {shapes.image[0]}x{shapes.image[1]}"
    filters = f"HDFNet's filtering, {{}}, {'x'.join(map(str, shapes.filters))}"
    head = partial(mask_heads, maps=shapes.maps, device=device)
    filtering = partial(local_filters, shapes, device)
    fcos = partial(fcos_heads, shapes, device)
    both = "forward + backward"

    def one(name: str, build: Callable[[], dict[str, Run]], what: str, **bars: Any) -> Comparison:
        return Comparison(name, build, (Line(what, **bars),))

    return [
        one("mask head, forward", partial(head, count),
            f"mask head, forward, {count} instances, {h}x{w}", faster=10.0, memory=0.25),
        *(
            one(f"mask head, {both}, {n}", partial(head, n, backward=True),
                f"mask head, {both}, {n} instances", faster=bar, memory=0.3)
            for n, bar in ((few, 3.0), (many, 6.0))
        ),
        one("post-process", partial(pastes, count, shapes.image, device),
            f"post-process, {masks}", faster=6.0, memory=0.15),
        one("FCOS head + controller, inference", fcos,
            "FCOS head + controller, inference", faster=1.2),
        one("FCOS head + controller, training", partial(fcos, backward=True),
            "FCOS head + controller, training", faster=1.2),
        one("filtering, forward", filtering,
            filters.format("forward"), faster=9.0, memory=0.15),
        one(f"filtering, {both}", partial(filtering, backward=True),
            filters.format(both), faster=3.0, memory=0.6),
    ]  # fmt: skip


def curves(shapes: Shapes, device: torch.device) -> Curves:
    """Time and memory of the mask head's forward over the sizes of its inputs."""
    h, w = shapes.maps
    count = shapes.detections

    def point(n: int, maps: Size, images: int = 1) -> Comparison:
        return Comparison("mask head", partial(mask_heads, n, maps, device, images))

    sides = [(h // 2, w // 2), (h, w), (2 * h, 2 * w), (4 * h, 4 * w)]
    return {
        "instances": {float(n): point(n, (h, w)) for n in shapes.instances},
        "megapixels": {64 * a * b / 1e6: point(count, (a, b)) for a, b in sides},
        "images": {float(n): point(n * count, (h, w), n) for n in (1, 2, 4)},
    }


def mask_heads(
    count: int, maps: Size, device: torch.device, images: int = 1, backward: bool = False
) -> dict[str, Run]:
    """8 channels, 3 layers, stride 8 to 4."""
    sides: dict[str, Run] = {}
    fast = DynamicMaskHead()
    for name, head in ((FAST, fast), (PUBLISHED, published_form(fast))):
        queries = mask_queries(count, maps, head.num_params, device, images)
        features = random_maps(images, head.in_channels, *maps, device=device)
        call, leaves = partial(_mask_head, head, queries), (features, queries.params)
        sides[name] = gradients(call, leaves) if backward else inference(call, *leaves)
    return sides


def _mask_head(
    head: DynamicMaskHead, queries: MaskQueries, features: Tensor, params: Tensor
) -> Tensor:
    masks: Tensor = head(features, replace(queries, params=params))
    return masks


def pastes(count: int, size: Size, device: torch.device) -> dict[str, Run]:
    """Ellipses at stride 4 to masks of the image."""
    coarse = (size[0] // 4, size[1] // 4)
    logits = ellipses(count, coarse, torch.Generator().manual_seed(0)).to(device)
    info = ImageInfo(0, "", size, size)
    fast = PostProcess()
    sides = {FAST: fast, PUBLISHED: published_postprocess(fast)}
    return {name: inference(side.paste, logits, info, 4) for name, side in sides.items()}


def fcos_heads(shapes: Shapes, device: torch.device, backward: bool = False) -> dict[str, Run]:
    """Dense predictions of all levels, and the parameters of the chosen locations."""
    torch.manual_seed(0)
    size = shapes.train if backward else shapes.image
    images = shapes.batch if backward else 1
    maps = pyramid_maps(size, images, shapes.channels, device)
    count = shapes.backward[0] * images if backward else shapes.detections
    locations = sum(m.shape[-2] * m.shape[-1] for m in maps)
    generator = torch.Generator().manual_seed(0)
    where = torch.randint(locations, (count,), generator=generator).to(device)
    image_index = (torch.arange(count) * images // count).to(device)
    fast = FCOSHead(shapes.channels, CLASSES, DynamicMaskHead().num_params).to(device)
    sides: dict[str, Run] = {}
    for name, head in ((FAST, fast), (PUBLISHED, published_form(fast))):
        call = partial(_fcos_head, head, image_index, where)
        trained = tuple(head.parameters())
        sides[name] = gradients(call, maps, trained) if backward else inference(call, *maps)
    return sides


def _fcos_head(
    head: FCOSHead, image_index: Tensor, where: Tensor, *maps: Tensor
) -> tuple[Tensor, ...]:
    dense = head(maps)
    params = head.params_at(dense.controller_features, image_index, where)
    return dense.class_logits, dense.ltrb, dense.centerness_logits, params


def local_filters(shapes: Shapes, device: torch.device, backward: bool = False) -> dict[str, Run]:
    """A 3x3 filter for each pixel of each channel."""
    images, channels, height, width = shapes.filters
    x = random_maps(images, channels, height, width, device=device)
    taps = random_maps(images, channels, 9, height, width, device=device, seed=1)
    sides: dict[str, Run] = {}
    for name, form in ((FAST, filter_locally), (PUBLISHED, filter_unfolded)):
        call = partial(form, kernel_size=(3, 3))
        sides[name] = gradients(call, (x, taps)) if backward else inference(call, x, taps)
    return sides
