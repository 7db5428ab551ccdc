"""The whole evaluation: by stage, beside its published form and torchvision's Mask R-CNN."""

from __future__ import annotations

import shutil
import tempfile
from functools import partial
from pathlib import Path

import cv2
import torch
from torchvision.models import get_model

from condseg.data.images import read_image
from condseg.evaluation import to_records
from condseg.inference.drawing import draw
from condseg.inference.predictor import Predictor
from condseg.inference.stages import Stages
from condseg.layers import to_dynamic
from condseg.models import CondInst
from condseg.structures import ImageInfo, Size
from studies.benchmarks import subjects
from studies.benchmarks.compare import FAST, PUBLISHED, Comparison, Line
from studies.benchmarks.inputs import Shapes, batch, image, inference, random_maps
from studies.benchmarks.page import stage_cells
from studies.benchmarks.session import Curves
from studies.measure import Run
from studies.published import published_form

STAGES = ("load", "pre-process", "backbone", "FPN", "heads", "decode + NMS", "mask head",
          "post-process", "RLE", "drawing")  # fmt: skip


def comparisons(shapes: Shapes, device: torch.device) -> list[Comparison]:
    """The lines of the table about whole networks."""
    h, w = shapes.image
    lines = [
        Line(f"whole evaluation, {h}x{w}, {shapes.detections} found", faster=2.0, memory=0.3),
        Line("the same, bf16", "bf16", faster=3.0, same=False),
    ]
    if has_compiler():
        lines += [
            Line("the same, compiled", "compiled", faster=3.0),
            Line("the same, bf16 and compiled", "bf16 and compiled", faster=3.0, same=False),
        ]
    lines.append(
        Line("against torchvision's Mask R-CNN", base="torchvision", faster=2.5, same=False)
    )
    bars = zip(shapes.classifier_batches, (2.2, 1.75), strict=True)
    twins = "ODConv's cost over its static twin"
    twin = partial(Line, base="static", slower=1.15, same=False)
    both = f"{twins}, condinst_odconv (filters in the mask branch, too)"
    return [
        Comparison("whole evaluation", partial(evaluations, shapes, device), tuple(lines)),
        *(
            Comparison(
                f"od_{shapes.classifier}, batch {count}",
                partial(classifiers, shapes, device, count),
                (Line(f"od_{shapes.classifier} 4x, batch {count}", faster=bar, memory=0.6),),
            )
            for count, bar in bars
        ),
        Comparison(
            "ODConv and its static twin",
            partial(twin_networks, shapes, device),
            (twin(f"{twins}, CondInst", "ODConv"), twin(both, "ODConv and filters")),
            memory=False,
        ),
        Comparison(
            "ODConv and its static twin, backbone",
            partial(twin_backbones, shapes, device),
            (twin(f"{twins}, backbone alone", "ODConv"),),
            memory=False,
        ),
    ]


def curves(shapes: Shapes, device: torch.device) -> Curves:
    """The whole evaluation over the size and the number of images."""
    (h, w), network = shapes.image, subjects.condinst(shapes, device)
    half = (h // 64 * 32, w // 64 * 32)

    def point(size: Size, count: int) -> Comparison:
        return Comparison("evaluation", partial(sides_of, network, shapes, device, size, count))

    return {
        "megapixels": {a * b / 1e6: point((a, b), 1) for a, b in (half, (h, w))},
        "images": {float(n): point(half, n) for n in (1, 2, 4)},
    }


def sides_of(
    network: CondInst, shapes: Shapes, device: torch.device, size: Size, count: int
) -> dict[str, Run]:
    """Both forms on so many images of that size."""
    fast, images = subjects.predictor(network, shapes, device), batch(size, count)
    sides = {FAST: fast, PUBLISHED: subjects.published(fast)}
    return {name: partial(side.predict, images) for name, side in sides.items()}


def stages(shapes: Shapes, device: torch.device) -> dict[str, dict[str, str]]:
    """Stage -> side -> median milliseconds of an image from file to drawing, and their share."""
    fast = subjects.predictor(subjects.condinst(shapes, device), shapes, device)
    sides = {FAST: fast, PUBLISHED: subjects.published(fast)}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "image.jpg"
        cv2.imwrite(str(file), image(shapes.image)[..., ::-1])
        timed = {n: partial(file_to_drawing, side, file, device) for n, side in sides.items()}
        return stage_cells(timed, STAGES)


def file_to_drawing(predictor: Predictor, file: Path, device: torch.device) -> dict[str, float]:
    """Seconds of each stage."""
    clock = Stages(device)
    with clock("load"):
        pixels = read_image(file)
    with clock("pre-process"), predictor.timed(clock):
        detections = predictor(pixels)
    with clock("RLE"):
        info = ImageInfo(0, str(file), (pixels.shape[0], pixels.shape[1]), (0, 0))
        to_records(info, detections, predictor.categories)
    with clock("drawing"):
        draw(pixels, detections, predictor.names)
    return clock.seconds


def evaluations(shapes: Shapes, device: torch.device) -> dict[str, Run]:
    """From the resized image to masks of its size."""
    fast = subjects.predictor(subjects.condinst(shapes, device), shapes, device)
    one = batch(shapes.image, 1)
    assert len(fast.predict(one)[0]) == shapes.detections
    sides = {FAST: fast, PUBLISHED: subjects.published(fast)}
    sides["bf16"] = subjects.optimized(fast, compiled=False, mixed=True)
    if has_compiler():
        sides["compiled"] = subjects.optimized(fast, compiled=True, mixed=False)
        sides["bf16 and compiled"] = subjects.optimized(fast, compiled=True, mixed=True)
    runs: dict[str, Run] = {name: partial(side.predict, one) for name, side in sides.items()}
    return {**runs, "torchvision": subjects.mask_rcnn(shapes, device)}


def has_compiler() -> bool:
    """Whether there is a C++ compiler, which torch.compile needs."""
    return any(map(shutil.which, ("g++", "clang++", "c++")))


def classifiers(shapes: Shapes, device: torch.device, count: int) -> dict[str, Run]:
    """The ODConv paper's network with four experts, in evaluation.

    It starts from a static one of random weights, then all weights are changed a little: with
    random attentions so deep a network is chaotic, and rounding alone changes its results.
    """
    torch.manual_seed(0)
    fast = get_model(shapes.classifier, weights=None).to(device).eval()
    side = shapes.classifier_side
    x = random_maps(count, 3, side, side, device=device)
    subjects.calibrate_norms_(fast, partial(fast, x))
    to_dynamic(fast, subjects.ODCONV)
    with torch.no_grad():
        for parameter in fast.parameters():
            parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
    return {FAST: inference(fast, x), PUBLISHED: inference(published_form(fast), x)}


def twin_networks(shapes: Shapes, device: torch.device) -> dict[str, Run]:
    """Whole evaluations: static backbone, ODConv's, and ODConv with filters in the mask branch."""
    one = batch(shapes.image, 1)
    kinds = {"static": (False, False), "ODConv": (True, False), "ODConv and filters": (True, True)}
    sides: dict[str, Run] = {}
    for name, (odconv, filtered) in kinds.items():
        network = subjects.condinst(shapes, device, odconv, filtered)
        sides[name] = partial(subjects.predictor(network, shapes, device).predict, one)
    return sides


def twin_backbones(shapes: Shapes, device: torch.device) -> dict[str, Run]:
    """The backbones alone."""
    x = random_maps(1, 3, *shapes.image, device=device)
    static, dynamic = (subjects.condinst(shapes, device, odconv=o).backbone for o in (False, True))
    return {"static": inference(static, x), "ODConv": inference(dynamic, x)}
