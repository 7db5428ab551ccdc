"""What an exported file contains besides its weights: names of inputs and outputs, and facts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from condseg import __version__
from condseg.models.condinst import CondInst
from condseg.zoo.checkpoint import Restored
from condseg.zoo.registry import MODELS

FORMAT = "1"
"""Of inputs, outputs and facts; a reader supports its own only."""
OUTPUTS = ("boxes", "labels", "scores", "image_index", "masks")


def thresholds(restored: Restored) -> dict[str, Tensor]:
    """The inputs besides the images, and their defaults, which are those of the post-process."""
    post = restored.postprocess
    score = post.score_threshold
    if score is None:
        ranking = post.candidate_threshold if post.threshold_with_centerness else 0.0
        score = float(_final_score(restored.network, ranking))
    return {
        "score_threshold": torch.tensor(score),
        "nms_threshold": torch.tensor(post.nms_threshold),
        "max_detections": torch.tensor([post.max_detections]),
        "mask_threshold": torch.tensor(post.mask_threshold),
    }


@torch.no_grad()
def _final_score(network: CondInst, ranking: float) -> Tensor:
    """The score of a detection with this ranking score; the type of predictions knows it."""
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    depth = torch.ones(1, 32, 32) if network.takes_depth else None
    head = network(image, [(32, 32)], depth).head
    score: Tensor = head.final_scores(torch.tensor(ranking))
    return score


def licence_of(restored: Restored) -> str:
    """The licence of the weights, which is known of published models."""
    published = MODELS.get(restored.source.removeprefix("model "))
    return published.licence if published else "that of the checkpoint"


def facts_of(restored: Restored, full_size: bool) -> dict[str, str]:
    """What a reader of the file needs to know, as text."""
    return {
        "format": FORMAT,
        "condseg": __version__,
        "classes": json.dumps([{"id": c.id, "name": c.name} for c in restored.categories]),
        "short_side": str(restored.short_side),
        "max_long_side": str(restored.max_long_side),
        "colors": "RGB",
        "masks": "full size" if full_size else "logits",
        "mask_interpolation": restored.postprocess.mask_interpolation,
        "mask_stride": str(restored.network.mask_head.out_stride),
        "thresholds": json.dumps({k: v.tolist() for k, v in thresholds(restored).items()}),
        "config": json.dumps(restored.recipe),
        "source": restored.source,
        "licence": licence_of(restored),
    }


def defaults_of(facts: Mapping[str, str]) -> dict[str, NDArray[Any]]:
    """The thresholds' defaults, by a file's facts, as inputs."""
    values = json.loads(facts.get("thresholds", "{}"))
    return {
        name: np.array(value, np.int64 if name == "max_detections" else np.float32)
        for name, value in values.items()
    }


def check_file(path: str | Path, facts: Mapping[str, str], outputs: Sequence[str]) -> None:
    """Raises ValueError unless a file with these facts and outputs can be read."""
    if "format" not in facts:
        raise ValueError(f"model {path}: not written by condseg export (no entry 'format')")
    if facts["format"] != FORMAT:
        raise ValueError(
            f"model {path}: its format is {facts['format']}, written by condseg "
            f"{facts.get('condseg')}; {FORMAT} is supported: export the checkpoint again"
        )
    missing = [name for name in OUTPUTS if name not in outputs]
    if missing:
        raise ValueError(f"model {path}: has no output {', '.join(missing)}")
