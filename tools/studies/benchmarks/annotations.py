"""Opening annotations of COCO's size, beside pycocotools: time and memory of new processes."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from pycocotools.coco import COCO

from condseg.data.dataset import CocoDataset
from condseg.evaluation import CocoEvaluator
from condseg.structures import Category
from studies.benchmarks.inputs import CLASSES
from studies.benchmarks.session import write_results
from studies.measure import machine, ratios
from studies.report import machine_text, spread_text


@dataclass(frozen=True, slots=True)
class SetSize:
    """Numbers of a set; polygons have about ``points`` points."""

    images: int
    objects: int
    points: int = 28


SETS = {"train2017": SetSize(118_287, 860_001), "val2017": SetSize(5_000, 36_781)}
QUICK = {"train2017": SetSize(200, 1500), "val2017": SetSize(50, 300)}
CROWDS = 0.012
"""Fraction of the objects that are crowds with an uncompressed RLE."""


def write_set(folder: Path, name: str, size: SetSize) -> tuple[Path, Path]:
    """Writes a json, and a folder with an empty file for each of its images.

    The objects are drawn from 1,000 outlines, ellipses with noise, at random places; coordinates
    have two decimals, as COCO's.
    """
    random = np.random.default_rng(0)
    height, width = 480, 640
    objects = [_object(random, height, width, size.points) for _ in range(1000)]
    images = folder / name
    images.mkdir()
    rle = json.dumps({"counts": [height] * width, "size": [height, width]})
    path = folder / f"instances_{name}.json"
    with path.open("w", encoding="ascii") as file:
        file.write('{"images": [')
        for number in range(size.images):
            file_name = f"{number:012}.jpg"
            (images / file_name).touch()
            entry = {"license": 3, "file_name": file_name, "height": height, "width": width}
            url = {"coco_url": f"http://images.example.org/{name}/{file_name}", "id": number + 1}
            file.write(f"{', ' if number else ''}{json.dumps(entry | url)}")
        file.write('], "annotations": [')
        image_ids = random.integers(1, size.images + 1, size.objects).tolist()
        choices = random.integers(0, len(objects), size.objects).tolist()
        crowds = (random.random(size.objects) < CROWDS).tolist()
        for number, (image, choice, crowd) in enumerate(
            zip(image_ids, choices, crowds, strict=True), start=1
        ):
            segmentation, rest = objects[choice]
            file.write(
                f'{", " if number > 1 else ""}{{"segmentation": {rle if crowd else segmentation}, '
                f'"iscrowd": {int(crowd)}, "image_id": {image}, {rest}, '
                f'"category_id": {number % CLASSES + 1}, "id": {number}}}'
            )
        categories = [{"id": k + 1, "name": f"class {k}"} for k in range(CLASSES)]
        file.write(f'], "categories": {json.dumps(categories)}}}')
    return path, images


def _object(random: np.random.Generator, height: int, width: int, mean: int) -> tuple[str, str]:
    """A segmentation, and area and box, as json."""
    count = max(4, int(random.gamma(2.0, mean / 2)))
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    half = np.exp(random.uniform(np.log(4), np.log(150), 2)) * (
        0.9 + 0.1 * random.random((count, 1))
    )
    centre = random.uniform(0.2, 0.8, 2) * (width, height)
    points = centre + half * np.column_stack((np.cos(angle), np.sin(angle)))
    points = points.clip(0, (width, height)).round(2)
    low, high = points.min(axis=0), points.max(axis=0)
    box = [*low.tolist(), *(high - low).round(2).tolist()]
    area = float(np.prod(high - low) * np.pi / 4)
    return json.dumps([points.ravel().tolist()]), f'"area": {area:.4f}, "bbox": {json.dumps(box)}'


def _pycocotools(path: Path, images: Path) -> object:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def _dataset(path: Path, images: Path) -> object:
    return CocoDataset(path, images)


def _evaluator(path: Path, images: Path) -> object:
    return CocoEvaluator(path, [Category(k + 1, f"class {k}") for k in range(CLASSES)])


BASE = "pycocotools"
SIDES: dict[str, Callable[[Path, Path], object]] = {
    BASE: _pycocotools,
    "data set, first": _dataset,
    "data set, later": _dataset,
    "evaluator, later": _evaluator,
}


def _opened(side: str, path: Path, images: Path) -> dict[str, float]:
    """Seconds, and the growth of the peak and of the private memory in MiB, of an opening."""
    before = _memory()
    start = time.perf_counter()
    opened = SIDES[side](path, images)
    seconds = time.perf_counter() - start
    after = _memory()
    del opened
    peak, private = after["VmHWM"] - before["VmRSS"], after["private"] - before["private"]
    return {"seconds": seconds, "peak": peak / 1024, "private": private / 1024}


def _memory() -> dict[str, int]:
    """Resident memory and its peak in KiB, and what is neither shared nor pages of a file."""
    status = Path("/proc/self/status").read_text("ascii").splitlines()
    facts = dict(line.split(":", 1) for line in status if line.startswith(("VmHWM", "VmRSS")))
    rollup = Path("/proc/self/smaps_rollup").read_text("ascii").splitlines()
    facts["private"] = next(line for line in rollup if line.startswith("Private_Dirty"))[14:]
    return {name: int(value.split()[0]) for name, value in facts.items()}


def run(args: argparse.Namespace) -> None:
    """Measures each side in processes of its own, in turns, and writes JSON and page."""
    facts = machine(torch.device("cpu"))
    print(f"{machine_text(facts)}\n")
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    context = multiprocessing.get_context("fork")  # what is imported is no part of the measurement
    for name, size in (QUICK if args.quick else SETS).items():
        with tempfile.TemporaryDirectory() as folder:
            path, images = write_set(Path(folder), name, size)
            os.environ["XDG_CACHE_HOME"] = folder
            samples = found[f"{name}, {path.stat().st_size / 2**20:.0f} MiB"] = {}
            start = time.perf_counter()
            for number in range(args.rounds):
                if number and time.perf_counter() - start > args.seconds:
                    break
                shutil.rmtree(Path(folder) / "condseg", ignore_errors=True)
                for side in SIDES:
                    with context.Pool(1) as pool:
                        sample = pool.apply(_opened, (side, path, images))
                    samples.setdefault(side, []).append(sample)
    table = {f"{name}: {s}": _row(s, samples) for name, samples in found.items() for s in samples}
    head = f"opening, {len(next(iter(samples.values())))} rounds or more"
    write_results(args, facts, {"samples": found}, {head: table})


def _row(side: str, samples: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, str]:
    seconds = {name: [each["seconds"] for each in some] for name, some in samples.items()}
    memory = [statistics.median(each[k] for each in samples[side]) for k in ("peak", "private")]
    return {
        f"time, {BASE} = 1": spread_text(asdict(ratios(seconds, side, BASE)), "{:.3f}", ""),
        "peak, MiB": f"{memory[0]:,.0f}",
        "kept by the process, MiB": f"{memory[1]:,.0f}",
    }
