"""Two pictures can be learned by heart: every part that training touches pulls the same way."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from support.tiny import train

from condseg.data.files import TABLETOP


@pytest.mark.slow
def test_two_pictures_by_heart(tmp_path: Path) -> None:
    content = json.loads((TABLETOP / "instances_train.json").read_text())
    content["images"] = content["images"][:2]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    annotations = tmp_path / "two.json"
    annotations.write_text(json.dumps(content))
    run = train(
        [
            "--config=quickstart.yaml",
            f"--trainer.default_root_dir={tmp_path}",
            "--trainer.accelerator=cpu",
            "--trainer.max_steps=200",
            "--trainer.val_check_interval=200",
            f"--data.train_annotations={annotations}",
            f"--data.val_annotations={annotations}",
            f"--data.train_images={TABLETOP / 'train'}",
            f"--data.val_images={TABLETOP / 'train'}",
            "--data.batch_size=2",
            "--data.flip=none",
            "--data.crop=0",
            "--data.color_jitter=0",
        ],
        timeout=900,
    )
    assert run.returncode == 0, run.stderr
    with (tmp_path / "quickstart" / "version_0" / "metrics.csv").open() as file:
        found = [float(row["val/mask_AP"]) for row in csv.DictReader(file) if row["val/mask_AP"]]
    assert found[-1] > 0.9
