"""The dynamic parts by themselves: mask head, masks of pictures, controller, local filters."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import get_args

import torch
from torch import Tensor

from condseg.layers import Implementation, set_implementation
from condseg.layers.local_filter import filter_locally
from condseg.layers.winograd import quicken_
from condseg.models.heads.fcos import FCOSHead
from condseg.models.mask.head import DynamicMaskHead
from condseg.models.postprocess import PostProcess
from condseg.structures import ImageInfo, MaskQueries, Size
from studies.benchmarks import subjects
from studies.benchmarks.compare import Comparison, Line
from studies.benchmarks.measure import Run
from studies.benchmarks.session import Curve, Session
from studies.benchmarks.subjects import CLASSES, Shapes
from studies.published.layers import filter_unfolded

IMPLEMENTATIONS: tuple[Implementation, ...] = get_args(Implementation)


def comparisons(shapes: Shapes, device: torch.device) -> list[Comparison]:
    """The table's lines about the dynamic parts."""
    few, many = shapes.backward
    count, (h, w) = shapes.detections, shapes.maps
    heads = partial(mask_heads, maps=shapes.maps, device=device)
    masks = f"{count} masks to {shapes.picture[0]}x{shapes.picture[1]}"
    sizes = "x".join(map(str, shapes.filters))
    return [
        Comparison(
            "mask head, forward",
            partial(heads, count),
            (Line(f"mask head, forward, {count} instances, {h}x{w}", faster=12.0, memory=0.25),),
        ),
        *(
            Comparison(
                f"mask head, forward + backward, {n}",
                partial(heads, n, backward=True),
                (Line(f"mask head, forward + backward, {n} instances", faster=bar, memory=0.3),),
            )
            for n, bar in ((few, 3.0), (many, 6.0))
        ),
        Comparison(
            "post-process",
            partial(pastes, count, shapes.picture, device),
            (Line(f"post-process, {masks}", faster=6.0, memory=0.15),),
        ),
        Comparison(
            "FCOS head + controller, inference",
            partial(fcos_heads, shapes, device),
            (Line("FCOS head + controller, inference", faster=1.2),),
        ),
        Comparison(
            "FCOS head + controller, training",
            partial(fcos_heads, shapes, device, backward=True),
            (Line("FCOS head + controller, training", faster=1.2),),
        ),
        Comparison(
            "filtering, forward",
            partial(filters, shapes, device),
            (Line(f"HDFNet's filtering, forward, {sizes}", faster=12.0, memory=0.15),),
        ),
        Comparison(
            "filtering, forward + backward",
            partial(filters, shapes, device, backward=True),
            (Line(f"HDFNet's filtering, forward + backward, {sizes}", faster=6.0, memory=0.6),),
        ),
    ]


def curves(shapes: Shapes, device: torch.device) -> list[Curve]:
    """How time and memory of the mask head's forward grow."""
    h, w = shapes.maps
    count = shapes.detections

    def point(n: int, maps: Size, pictures: int = 1) -> Comparison:
        build = partial(mask_heads, n, maps=maps, device=device, pictures=pictures)
        return Comparison("mask head", build)

    sides = [(h // 2, w // 2), (h, w), (2 * h, 2 * w), (4 * h, 4 * w)]
    return [
        Curve("instances", {float(n): point(n, (h, w)) for n in shapes.instances}),
        Curve("megapixels", {64 * a * b / 1e6: point(count, (a, b)) for a, b in sides}),
        Curve("pictures", {float(n): point(n * count, (h, w), n) for n in (1, 2, 4)}),
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    Session.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Measure, print, write."""
    session = Session(args)
    session.compare(comparisons(session.shapes, session.device))
    session.follow(curves(session.shapes, session.device))
    session.write("mask-head")


def mask_heads(
    count: int, maps: Size, device: torch.device, pictures: int = 1, backward: bool = False
) -> dict[str, Run]:
    """8 channels, 3 layers, stride 8 to 4."""
    sides: dict[str, Run] = {}
    for name in IMPLEMENTATIONS:
        head = DynamicMaskHead(implementation=name)
        queries = subjects.mask_queries(count, maps, head.num_params, device, pictures)
        features = subjects.random_maps(pictures, head.in_channels, *maps, device=device)
        call = partial(_mask_head, head, queries)
        leaves = (features, queries.params)
        sides[name] = (
            gradients(call, leaves) if backward else subjects.inference(partial(call, *leaves))
        )
    return sides


def _mask_head(
    head: DynamicMaskHead, queries: MaskQueries, features: Tensor, params: Tensor
) -> Tensor:
    masks: Tensor = head(features, replace(queries, params=params))
    return masks


def pastes(count: int, size: Size, device: torch.device) -> dict[str, Run]:
    """Ellipses at stride 4 to masks of the picture."""
    coarse = (size[0] // 4, size[1] // 4)
    logits = subjects.ellipses(count, coarse, torch.Generator().manual_seed(0)).to(device)
    info = ImageInfo(0, "", size, size)
    paste = PostProcess().paste
    return {
        name: subjects.inference(partial(paste, logits, info, 4, name)) for name in IMPLEMENTATIONS
    }


def fcos_heads(shapes: Shapes, device: torch.device, backward: bool = False) -> dict[str, Run]:
    """Dense predictions of all levels, and the parameters of the chosen locations."""
    torch.manual_seed(0)
    size = shapes.train if backward else shapes.picture
    pictures = shapes.batch if backward else 1
    maps = subjects.pyramid(size, pictures, shapes.channels, device)
    count = shapes.backward[0] * pictures if backward else shapes.detections
    locations = sum(m.shape[-2] * m.shape[-1] for m in maps)
    generator = torch.Generator().manual_seed(0)
    where = torch.randint(locations, (count,), generator=generator).to(device)
    image = (torch.arange(count) * pictures // count).to(device)
    state: dict[str, Tensor] | None = None
    sides: dict[str, Run] = {}
    for name in IMPLEMENTATIONS:
        head = FCOSHead(shapes.channels, CLASSES, 4, DynamicMaskHead().num_params).to(device)
        quicken_(head)  # as CondInst does
        state = head.state_dict() if state is None else state
        head.load_state_dict(state)
        set_implementation(head, name)
        call = partial(_fcos_head, head, image, where)
        trained = tuple(head.parameters())
        sides[name] = (
            gradients(call, maps, trained) if backward else subjects.inference(partial(call, *maps))
        )
    return sides


def _fcos_head(head: FCOSHead, image: Tensor, where: Tensor, *maps: Tensor) -> tuple[Tensor, ...]:
    dense = head(maps)
    params = head.params_at(dense.controller_features, image, where)
    return dense.class_logits, dense.ltrb, dense.centerness_logits, params


def filters(shapes: Shapes, device: torch.device, backward: bool = False) -> dict[str, Run]:
    """A 3x3 filter of its own for each pixel of each channel."""
    pictures, channels, height, width = shapes.filters
    x = subjects.random_maps(pictures, channels, height, width, device=device)
    taps = subjects.random_maps(pictures, channels, 9, height, width, device=device, seed=1)
    sides: dict[str, Run] = {}
    for name in IMPLEMENTATIONS:
        form = filter_locally if name == "fast" else filter_unfolded
        call = partial(form, kernel_size=(3, 3))
        sides[name] = (
            gradients(call, (x, taps)) if backward else subjects.inference(partial(call, x, taps))
        )
    return sides


def gradients(
    call: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    more: Sequence[Tensor] = (),
) -> Run:
    """Forward and backward: the gradients of the inputs, and of ``more`` (parameters).

    What flows back is random and made beforehand, once the outputs' shapes are known.
    """
    flowing: list[Tensor] = []

    def run() -> tuple[Tensor, ...]:
        leaves = [x.detach().requires_grad_() for x in inputs]
        outputs = call(*leaves)
        outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
        if not flowing:
            for i, y in enumerate(outputs):
                flowing.append(subjects.random_maps(*y.shape, device=y.device, seed=i))
        return torch.autograd.grad(outputs, [*leaves, *more], flowing)

    return run
