"""A data set and a network that train in seconds."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

REPOSITORY = Path(__file__).parents[2]
CONFIGS = REPOSITORY / "configs"
CATEGORIES = [{"id": 3, "name": "box"}, {"id": 7, "name": "disc"}]

NETWORK = """
trainer: {precision: 32-true}
model:
  network:
    backbone:
      {name: resnet18, weights: null, freeze_stages: 0, norm: batch, width: 8, stem_width: 8}
    channels: 64
    head: {class_path: condseg.models.FCOSHead, init_args: {tower_convs: 1}}
    mask_branch_channels: 16
    mask_branch_convs: 1
  schedule: {class_path: condseg.training.schedules.WarmupMultiStep, init_args: {warmup_steps: 2}}
"""


def make_set(root: Path, train: int = 12, val: int = 5, side: int = 64) -> Path:
    """Coloured boxes and discs in COCO format; the k-th image has k % 3 objects."""
    for split, count in (("train", train), ("val", val)):
        (root / split).mkdir(parents=True)
        images, annotations = [], []
        random = np.random.default_rng(len(split))
        for i in range(count):
            image = random.integers(0, 60, (side, side, 3)).astype(np.uint8)
            for _ in range((i + 1) % 3 if split == "train" else 1 + i % 2):
                kind = int(random.integers(2))
                x, y, r = (int(v) for v in random.integers(12, [side - 12, side - 12, 16]))
                mask = np.zeros((side, side), np.uint8)
                if kind:
                    cv2.circle(mask, (x, y), r - 4, 1, -1)
                else:
                    cv2.rectangle(mask, (x - 8, y - 8), (x + 8, y + 8), 1, -1)
                image[mask == 1] = (230, 40, 40) if kind else (40, 40, 230)
                contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": i + 1,
                        "category_id": CATEGORIES[kind]["id"],
                        "segmentation": [contours[0].ravel().tolist()],
                        "bbox": list(cv2.boundingRect(mask)),
                        "area": int(mask.sum()),
                        "iscrowd": 0,
                    }
                )
            cv2.imwrite(str(root / split / f"{i}.png"), image)
            images.append({"id": i + 1, "file_name": f"{i}.png", "height": side, "width": side})
        content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
        (root / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def arguments(root: Path, runs: Path, *more: str) -> list[str]:
    """A short training of the tiny network on the tiny set, on the CPU in one process."""
    config = runs / "tiny.yaml"
    if not config.is_file():
        runs.mkdir(parents=True, exist_ok=True)
        config.write_text(NETWORK)
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
    """Starts tools/train.py as a user does, in a process group of its own.

    Args:
        args: of the command.
        variables: of the environment.
    """
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
    return os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


def losses(runs: Path, version: int = 0) -> dict[int, dict[str, float]]:
    """step -> the losses in metrics.csv of a run."""
    with (runs / "tiny" / f"version_{version}" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {
        int(row["step"]): {k: float(v) for k, v in row.items() if k.startswith("train/") and v}
        for row in rows
        if row["train/loss"]
    }
