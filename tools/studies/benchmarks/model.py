"""The whole evaluation: stage by stage, beside its published form and torchvision's Mask R-CNN."""

from __future__ import annotations

import argparse
import copy
import shutil
from functools import partial
from pathlib import Path

import torch
from torchvision.models import get_model

from condseg.data.images import read_image
from condseg.evaluation import to_records
from condseg.inference.drawing import draw
from condseg.inference.predictor import Predictor
from condseg.inference.stages import Stages
from condseg.layers import set_implementation, to_dynamic
from condseg.models.condinst import CondInst
from condseg.structures import ImageInfo, Size
from studies.benchmarks import subjects
from studies.benchmarks.compare import FAST, REFERENCE, Comparison, Line
from studies.benchmarks.measure import Run
from studies.benchmarks.report import stage_table
from studies.benchmarks.session import Curve, Session
from studies.benchmarks.subjects import Shapes

STAGES = (
    "load",
    "pre-process",
    "backbone",
    "FPN",
    "heads",
    "decode + NMS",
    "mask head",
    "post-process",
    "RLE",
    "drawing",
)


def comparisons(shapes: Shapes, device: torch.device) -> list[Comparison]:
    """The table's lines about whole networks."""
    h, w = shapes.picture
    lines = [
        Line(f"whole evaluation, {h}x{w}, {shapes.detections} found", faster=2.0, memory=0.3),
        Line("the same, bf16", "bf16", faster=3.0, same=False),
    ]
    if compiles():
        lines += [
            Line("the same, compiled", "compiled", faster=3.0),
            Line("the same, bf16 and compiled", "bf16 and compiled", faster=3.0, same=False),
        ]
    lines.append(
        Line("against torchvision's Mask R-CNN", base="torchvision", faster=2.5, same=False)
    )
    twins = "ODConv's cost over its static twin"
    return [
        Comparison("whole evaluation", partial(evaluations, shapes, device), tuple(lines)),
        *(
            Comparison(
                f"od_{shapes.classifier}, batch {count}",
                partial(classifiers, shapes, device, count),
                (Line(f"od_{shapes.classifier} 4x, batch {count}", faster=bar, memory=0.6),),
            )
            for count, bar in zip(shapes.classifier_batches, (2.2, 1.75), strict=True)
        ),
        Comparison(
            "ODConv and its static twin",
            partial(twin_networks, shapes, device),
            (
                Line(f"{twins}, CondInst", "ODConv", "static", slower=1.15, same=False),
                Line(
                    f"{twins}, condinst_odconv (filters in the mask branch, too)",
                    "ODConv and filters",
                    "static",
                    slower=1.15,
                    same=False,
                ),
            ),
            memory=False,
        ),
        Comparison(
            "ODConv and its static twin, backbone",
            partial(twin_backbones, shapes, device),
            (Line(f"{twins}, backbone alone", "ODConv", "static", slower=1.15, same=False),),
            memory=False,
        ),
    ]


def curves(shapes: Shapes, device: torch.device) -> list[Curve]:
    """How the whole evaluation grows with the pictures' size and number."""
    (h, w), made = shapes.picture, subjects.condinst(shapes, device)
    half = (h // 64 * 32, w // 64 * 32)

    def point(size: Size, count: int) -> Comparison:
        return Comparison("evaluation", partial(_both, made, shapes, device, size, count))

    return [
        Curve("megapixels", {a * b / 1e6: point((a, b), 1) for a, b in (half, (h, w))}),
        Curve("pictures", {float(n): point(half, n) for n in (1, 2, 4)}),
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    Session.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Measure, print, write."""
    session = Session(args)
    session.tables["stage, median ms (share)"] = stages(session.shapes, session.device)
    session.compare(comparisons(session.shapes, session.device))
    session.follow(curves(session.shapes, session.device))
    session.write("model")


def stages(shapes: Shapes, device: torch.device, rounds: int = 5) -> dict[str, dict[str, str]]:
    """Stage -> side -> median milliseconds of a picture from file to drawing, and their share."""
    fast = subjects.predictor(subjects.condinst(shapes, device), shapes, device)
    sides = {FAST: fast, REFERENCE: subjects.referenced(fast)}
    file = subjects.picture_file(shapes.picture)
    try:
        samples: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
        for k in range(rounds + 1):
            for name, side in sides.items():
                clock = Stages(device)
                _from_file_to_drawing(side, file, clock)
                if k:  # the first warms up
                    samples[name].append(clock.seconds)
    finally:
        file.unlink()
    return stage_table(samples, STAGES)


def _from_file_to_drawing(predictor: Predictor, file: Path, clock: Stages) -> None:
    with clock("load"):
        image = read_image(file)
    with clock("pre-process"), predictor.timed(clock):
        found = predictor(image)
    with clock("RLE"):
        info = ImageInfo(0, str(file), (image.shape[0], image.shape[1]), (0, 0))
        to_records(info, found, predictor.categories)
    with clock("drawing"):
        draw(image, found, predictor.names)


def evaluations(shapes: Shapes, device: torch.device) -> dict[str, Run]:
    """From the resized picture to masks of its size."""
    fast = subjects.predictor(subjects.condinst(shapes, device), shapes, device)
    found = len(fast.predict(subjects.batch(shapes.picture, 1))[0])
    if found != shapes.detections:
        raise RuntimeError(f"{found} detections where {shapes.detections} were to be compared")
    reference = subjects.referenced(fast)
    given = subjects.batch(shapes.picture, 1)
    sides: dict[str, Run] = {
        FAST: partial(fast.predict, given),
        REFERENCE: partial(reference.predict, given),
        "bf16": partial(subjects.mixed(fast).predict, given),
    }
    if compiles():
        sides["compiled"] = partial(subjects.compiled(fast).predict, given)
        sides["bf16 and compiled"] = partial(subjects.mixed(subjects.compiled(fast)).predict, given)
    sides["torchvision"] = subjects.mask_rcnn(shapes, device)
    return sides


def compiles() -> bool:
    """Whether inductor has what it compiles with."""
    return any(map(shutil.which, ("g++", "clang++", "c++")))


def _both(
    made: CondInst, shapes: Shapes, device: torch.device, size: Size, count: int
) -> dict[str, Run]:
    fast = subjects.predictor(made, shapes, device)
    given = subjects.batch(size, count)
    return {
        FAST: partial(fast.predict, given),
        REFERENCE: partial(subjects.referenced(fast).predict, given),
    }


def classifiers(shapes: Shapes, device: torch.device, count: int) -> dict[str, Run]:
    """The ODConv paper's network with four experts, in evaluation.

    It starts from a static one of random weights, then its experts part a little; random
    attentions make so deep a network chaotic: rounding alone would change its results.
    """
    torch.manual_seed(0)
    fast = get_model(shapes.classifier, weights=None).to(device).eval()
    side = shapes.classifier_side
    x = subjects.random_maps(count, 3, side, side, device=device)
    subjects.settle(fast, partial(fast, x))
    to_dynamic(fast, subjects.ODCONV)
    with torch.no_grad():
        for parameter in fast.parameters():
            parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
    reference = copy.deepcopy(fast)
    set_implementation(reference, "reference")
    return {
        FAST: subjects.inference(partial(fast, x)),
        REFERENCE: subjects.inference(partial(reference, x)),
    }


def twin_networks(shapes: Shapes, device: torch.device) -> dict[str, Run]:
    """Whole evaluations by a static backbone, by ODConv's, and with filters in the mask branch."""
    given = subjects.batch(shapes.picture, 1)
    kinds = {"static": (False, False), "ODConv": (True, False), "ODConv and filters": (True, True)}
    sides: dict[str, Run] = {}
    for name, (odconv, filtered) in kinds.items():
        network = subjects.condinst(shapes, device, odconv, filtered)
        sides[name] = partial(subjects.predictor(network, shapes, device).predict, given)
    return sides


def twin_backbones(shapes: Shapes, device: torch.device) -> dict[str, Run]:
    """The backbones alone."""
    x = subjects.random_maps(1, 3, *shapes.picture, device=device)
    static, dynamic = (subjects.condinst(shapes, device, odconv=o).backbone for o in (False, True))
    return {
        "static": subjects.inference(partial(static, x)),
        "ODConv": subjects.inference(partial(dynamic, x)),
    }
