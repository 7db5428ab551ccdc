"""Loading of training images: by stage, and beside torchvision's detection transforms."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import torch
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.transforms import v2

from condseg.data import dataset as data
from condseg.data.collate import collate
from condseg.data.files import data_root, find_files
from condseg.data.transforms import train_transform
from condseg.inference.stages import Stages
from studies.benchmarks.page import stage_cells
from studies.benchmarks.session import write_results
from studies.measure import Spread, interleaved, machine, ratios
from studies.report import machine_text, spread_text

SHORT_SIDES = (640, 672, 704, 736, 768, 800)
MAX_LONG_SIDE = 1333
BATCH = 6
OWN, BASE = "condseg", "torchvision"
STAGES = ("decode", "draw masks", "resize", "other transforms", "masks and boxes", "collate",
          "other")  # fmt: skip


class Own:
    """The training set as condseg loads it; the images of a batch have one short side each."""

    def __init__(self, annotations: Path, images: Path) -> None:
        self.dataset = data.CocoDataset(annotations, images, skip_empty=True)
        self.transforms = [train_transform((side,), MAX_LONG_SIDE) for side in SHORT_SIDES]

    def load(self, first: int) -> list[Any]:
        """A batch of samples that are not padded yet."""
        samples = []
        for number in range(first, first + BATCH):
            self.dataset.transform = self.transforms[number % len(SHORT_SIDES)]
            samples.append(self.dataset[number % len(self.dataset)])
        return samples

    def timed(self, first: int) -> dict[str, float]:
        """Seconds of each stage of a batch."""
        stages = Stages(torch.device("cpu"))
        with stages.timed_calls(
            (data, "read_image", "decode"),
            (data, "to_layers", "draw masks"),
            (cv2, "resize", "resize"),
            (type(self.transforms[0]), "__call__", "other transforms"),
            (data, "from_layers", "masks and boxes"),
        ):
            with stages("other"):
                samples = self.load(first)
            with stages("collate"):
                collate(samples)
        return {stage: stages.seconds.get(stage, 0.0) for stage in STAGES}


class Torchvision:
    """The same images by ``torchvision.transforms.v2``, as uint8, not padded."""

    def __init__(self, annotations: Path, images: Path, image_ids: list[int]) -> None:
        whole = CocoDetection(images, annotations)
        whole.ids = image_ids
        self.dataset = wrap_dataset_for_transforms_v2(whole, ("boxes", "labels", "masks"))
        self.transforms = [
            v2.Compose(
                [
                    v2.ToImage(),
                    v2.RandomShortestSize([side], MAX_LONG_SIDE),
                    v2.RandomHorizontalFlip(0.5),
                ]
            )
            for side in SHORT_SIDES
        ]

    def load(self, first: int) -> list[Any]:
        """A batch of (image, target)."""
        return [
            self.transforms[number % len(SHORT_SIDES)](*self.dataset[number % len(self.dataset)])
            for number in range(first, first + BATCH)
        ]


def run(args: argparse.Namespace) -> None:
    """Measures batches of the training set in turns, in one thread, and writes JSON and page.

    Raises:
        ValueError: the data are wrong.
    """
    facts = machine(torch.device("cpu"))
    print(f"{machine_text(facts)}\n")
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    annotations, images = find_files(data_root(args.data), "train", None, None)
    own = Own(annotations, images)
    base = Torchvision(annotations, images, own.dataset.image_ids.tolist())
    sides: dict[str, Callable[[int], object]] = {OWN: own.load, BASE: base.load}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(args.rounds):  # other images in each round, the same for both
        runs = {name: partial(load, number * BATCH) for name, load in sides.items()}
        for name, samples in interleaved(runs, torch.device("cpu"), 1, number == 0).items():
            seconds[name] += samples
    rates = {name: [BATCH / each for each in some] for name, some in seconds.items()}
    speed = {
        name: {
            "images/s and core": spread_text(asdict(Spread.of(rates[name])), "{:.1f}", ""),
            f"of {BASE}'s": spread_text(asdict(ratios(rates, name, BASE))),
        }
        for name in sides
    }
    starts = iter(range(0, 10**9, BATCH))
    stages = stage_cells({OWN: lambda: own.timed(next(starts))}, STAGES, min(args.rounds, 20))
    title = f"short side 640 to 800, one thread, {args.rounds} batches of {BATCH}"
    tables = {title: speed, f"stage, median ms of {BATCH} images (share)": stages}
    write_results(args, facts, {"seconds": seconds}, tables)
