"""The dynamic parts alone: mask head, post-process, FCOS head with controller, local filters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from condseg.layers.local_filter import filter_locally
from condseg.models import DynamicMaskHead, FCOSHead, PostProcess
from condseg.structures import ImageInfo, Size
from studies.benchmarks import inputs
from studies.benchmarks.compare import FAST, PUBLISHED, Comparison, Line
from studies.benchmarks.inputs import CLASSES, Shapes
from studies.benchmarks.session import Curves
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


def sides(
    call: Callable[..., Any],
    forms: Mapping[str, Any],
    leaves: Sequence[Tensor],
    backward: bool,
) -> dict[str, Run]:
    """Runs ``call(form, *leaves)`` of each form, forward or forward + backward."""
    runs = {}
    for name, form in forms.items():
        run = partial(call, form)
        trained = tuple(form.parameters()) if isinstance(form, nn.Module) else ()
        runs[name] = (
            inputs.gradients(run, leaves, trained) if backward else inputs.inference(run, *leaves)
        )
    return runs


def both_forms(fast: nn.Module) -> dict[str, nn.Module]:
    """A module and its published form."""
    return {FAST: fast, PUBLISHED: published_form(fast)}


def mask_heads(
    count: int, maps: Size, device: torch.device, images: int = 1, backward: bool = False
) -> dict[str, Run]:
    """8 channels, 3 layers, stride 8 to 4."""
    fast = DynamicMaskHead()
    queries = inputs.mask_queries(count, maps, fast.num_params, device, images)
    features = inputs.random_maps(images, fast.in_channels, *maps, device=device)

    def call(head: DynamicMaskHead, features: Tensor, params: Tensor) -> Any:
        return head(features, replace(queries, params=params))

    return sides(call, both_forms(fast), (features, queries.params), backward)


def pastes(count: int, size: Size, device: torch.device) -> dict[str, Run]:
    """Ellipses at stride 4 to masks of the image."""
    coarse = (size[0] // 4, size[1] // 4)
    logits = inputs.ellipses(count, coarse, torch.Generator().manual_seed(0)).to(device)
    info = ImageInfo(0, "", size, size)
    fast = PostProcess()
    forms = {FAST: fast, PUBLISHED: published_postprocess(fast)}
    image = torch.zeros(count, dtype=torch.int64, device=device)

    def call(form: PostProcess, logits: Tensor) -> Tensor:
        return form.paste(logits, image, [info], 4)

    return sides(call, forms, (logits,), False)


def fcos_heads(shapes: Shapes, device: torch.device, backward: bool = False) -> dict[str, Run]:
    """Dense predictions of all levels, and the parameters of the chosen locations."""
    torch.manual_seed(0)
    size, images, count = shapes.image, 1, shapes.detections
    if backward:
        size, images, count = shapes.train, shapes.batch, shapes.backward[0] * shapes.batch
    maps = inputs.pyramid_maps(size, images, shapes.channels, device)
    locations = sum(m.shape[-2] * m.shape[-1] for m in maps)
    generator = torch.Generator().manual_seed(0)
    where = torch.randint(locations, (count,), generator=generator).to(device)
    image_index = (torch.arange(count) * images // count).to(device)
    fast = FCOSHead(shapes.channels, CLASSES, DynamicMaskHead().num_params).to(device)

    def call(head: FCOSHead, *maps: Tensor) -> tuple[Tensor, ...]:
        dense = head(maps)
        params = head.params_at(dense.controller_features, image_index, where)
        return dense.class_logits, dense.ltrb, dense.centerness_logits, params

    return sides(call, both_forms(fast), maps, backward)


def local_filters(shapes: Shapes, device: torch.device, backward: bool = False) -> dict[str, Run]:
    """A 3x3 filter for each pixel of each channel."""
    images, channels, height, width = shapes.filters
    x = inputs.random_maps(images, channels, height, width, device=device)
    taps = inputs.random_maps(images, channels, 9, height, width, device=device, seed=1)
    forms = {FAST: filter_locally, PUBLISHED: filter_unfolded}
    return sides(lambda form, x, taps: form(x, taps, (3, 3)), forms, (x, taps), backward)
