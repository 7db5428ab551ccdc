"""A small untrained model, its checkpoint, and a set of images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from condseg.zoo.checkpoint import RECIPE, build

CATEGORIES = [{"id": 2, "name": "cup"}, {"id": 5, "name": "fork"}, {"id": 40, "name": "spoon"}]
BACKBONE = {"name": "resnet18", "weights": None, "width": 8, "stem_width": 8}
PARTS = {
    "num_classes": 3,
    "channels": 64,
    "head": {"class_path": "condseg.models.FCOSHead", "init_args": {"tower_convs": 1}},
    "mask_branch_channels": 16,
    "mask_branch_convs": 1,
}
# Untrained scores are about 0.07.
POSTPROCESS = {"score_threshold": 0.0005, "max_detections": 12}


def write_checkpoint(path: Path, root: Path | str = "tabletop", **network: Any) -> Path:
    arguments = {"backbone": BACKBONE, **PARTS, **network}
    model = {"network": arguments, "postprocess": POSTPROCESS}
    torch.manual_seed(0)
    built, _ = build(model)
    recipe = {
        "model": model,
        "categories": CATEGORIES,
        "short_side": 64,
        "max_long_side": 96,
        "data": {"root": str(root)},
    }
    state = {f"network.{name}": value for name, value in built.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state, RECIPE: recipe}, path)
    return path


def write_set(root: Path, count: int = 5) -> Path:
    """Noise with a rectangle in each image; sizes differ."""
    rng = np.random.default_rng(0)
    (root / "val").mkdir(parents=True)
    images, annotations = [], []
    for i in range(count):
        height, width = 60 + 10 * i, 100 - 10 * i
        pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "val" / f"{i}.png")
        images.append({"id": 10 * i, "file_name": f"{i}.png", "height": height, "width": width})
        annotations.append(
            {
                "id": i + 1,
                "image_id": 10 * i,
                "category_id": CATEGORIES[i % 2]["id"],
                "bbox": [10, 10, 30, 40],
                "area": 1200,
                "iscrowd": 0,
                "segmentation": [[10, 10, 40, 10, 40, 50, 10, 50]],
            }
        )
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (root / "instances_val.json").write_text(json.dumps(content))
    return root
