"""A data set, a network and a checkpoint for commands that end in seconds."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from support.coco import CATEGORIES, CocoSet

from condseg.zoo.checkpoint import RECIPE, build

REPOSITORY = Path(__file__).parents[2]
CONFIGS = REPOSITORY / "configs"
BACKBONE = {"name": "resnet18", "weights": None, "width": 8, "stem_width": 8}
NETWORK = {
    "backbone": BACKBONE,
    "channels": 64,
    "head": {"class_path": "condseg.models.FCOSHead", "init_args": {"tower_convs": 1}},
    "mask_branch_channels": 16,
    "mask_branch_convs": 1,
}
WARMUP = {
    "class_path": "condseg.training.schedules.WarmupMultiStep",
    "init_args": {"warmup_steps": 2},
}


def make_set(root: Path, train: int = 12, val: int = 5, side: int = 64) -> Path:
    """Colored boxes and discs in COCO format; the k-th image has k % 3 objects."""
    for split, count in (("train", train), ("val", val)):
        coco = CocoSet(root, split, [(side, side)] * count, objects=0)
        random = np.random.default_rng(len(split))
        for i, entry in enumerate(coco.content["images"]):
            image = random.integers(0, 60, (side, side, 3)).astype(np.uint8)
            for _ in range((i + 1) % 3 if split == "train" else 1 + i % 2):
                disc = int(random.integers(2))
                x, y, r = (int(v) for v in random.integers(12, [side - 12, side - 12, 16]))
                mask = np.zeros((side, side), np.uint8)
                if disc:
                    cv2.circle(mask, (x, y), r - 4, 1, -1)
                else:
                    cv2.rectangle(mask, (x - 8, y - 8), (x + 8, y + 8), 1, -1)
                image[mask == 1] = (230, 40, 40) if disc else (40, 40, 230)
                contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
                box, polygon = list(cv2.boundingRect(mask)), contours[0].ravel().tolist()
                coco.add(entry["id"], [polygon], box, n=1 - disc, area=int(mask.sum()))
            cv2.imwrite(str(coco.images / entry["file_name"]), image)
        coco.write()
    return root


def write_checkpoint(path: Path, **network: Any) -> Path:
    """A checkpoint of an untrained network with detections of 3 classes."""
    model = {
        "network": NETWORK | {"num_classes": 3} | network,
        "postprocess": {"score_threshold": 0.0005, "max_detections": 12},
    }
    torch.manual_seed(0)
    built, _ = build(model)
    recipe = {
        "model": model,
        "categories": [*CATEGORIES, {"id": 40, "name": "spoon"}],
        "short_side": 64,
        "max_long_side": 96,
        "data": {"root": "tabletop"},
    }
    state = {f"network.{name}": value for name, value in built.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state, RECIPE: recipe, "global_step": 70}, path)
    return path


def arguments(root: Path, runs: Path, *more: str) -> list[str]:
    """A short training of the tiny network on the tiny set, on the CPU in one process."""
    config = runs / "tiny.yaml"
    if not config.is_file():
        runs.mkdir(parents=True, exist_ok=True)
        backbone = BACKBONE | {"freeze_stages": 0, "norm": "batch"}
        model = {"network": NETWORK | {"backbone": backbone}, "schedule": WARMUP}
        config.write_text(yaml.safe_dump({"trainer": {"precision": "32-true"}, "model": model}))
    return [
        f"--config={config}",
        f"--trainer.default_root_dir={runs}",
        "--trainer.accelerator=cpu",
        "--trainer.devices=1",
        "--trainer.max_steps=6",
        "--trainer.val_check_interval=6",
        "--trainer.log_every_n_steps=1",
        "--temperature.steps=4",
        f"--data.root={root}",
        "--data.batch_size=4",
        "--data.workers=0",
        "--data.short_sides=[64]",
        "--data.val_short_side=64",
        "--data.max_long_side=64",
        *more,
    ]


def start(args: list[str], **variables: str) -> subprocess.Popen[str]:
    """Starts tools/train.py as a user does, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, str(REPOSITORY / "tools" / "train.py"), *args],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment() | variables,
        start_new_session=True,
    )


def error(
    command: Callable[[list[str]], object], args: list[str], capsys: pytest.CaptureFixture[str]
) -> str:
    """The one line with which a command ends with code 2."""
    with pytest.raises(SystemExit) as stop:
        command(args)
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0].removeprefix("error: ")


def environment() -> dict[str, str]:
    """This repository's package, one thread, no accelerator."""
    own = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return os.environ | own


def losses(runs: Path, version: int = 0) -> dict[int, dict[str, float]]:
    """step -> the losses in metrics.csv of a run."""
    with (runs / "tiny" / f"version_{version}" / "metrics.csv").open() as file:
        return {
            int(row["step"]): {k: float(v) for k, v in row.items() if k.startswith("train/") and v}
            for row in csv.DictReader(file)
            if row["train/loss"]
        }
