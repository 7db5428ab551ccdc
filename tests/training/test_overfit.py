"""A network that trains on two images only detects their objects."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from condseg.cli.train import main
from condseg.data.files import TABLETOP


@pytest.mark.slow
def test_two_images(tmp_path: Path) -> None:
    content = json.loads((TABLETOP / "instances_train.json").read_text())
    content["images"] = content["images"][:2]
    ids = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
    annotations = tmp_path / "two.json"
    annotations.write_text(json.dumps(content))
    cli = main(
        [
            "--config=quickstart.yaml",
            f"--trainer.default_root_dir={tmp_path}",
            "--trainer.accelerator=cpu",
            "--trainer.max_steps=200",
            "--trainer.val_check_interval=200",
            "--trainer.log_every_n_steps=1",
            f"--data.train_annotations={annotations}",
            f"--data.val_annotations={annotations}",
            f"--data.train_images={TABLETOP / 'train'}",
            f"--data.val_images={TABLETOP / 'train'}",
            "--data.batch_size=2",
            "--data.flip=none",
            "--data.crop=0",
            "--data.color_jitter=0",
        ]
    )
    assert float(cli.trainer.callback_metrics["val/mask_AP"]) > 0.9
