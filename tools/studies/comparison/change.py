"""How much the kernels of a trained variant change from image to image."""

from __future__ import annotations

import json
import statistics

import torch
from jsonargparse import set_parsing_settings

from condseg.inference.predictor import Predictor
from condseg.zoo.checkpoint import newest_best
from studies.comparison.data import Sets
from studies.comparison.trials import Trial
from studies.comparison.variants import LAYERS, VARIANTS
from studies.inspection.observe import inspect

IMAGES = 20


def kernel_change(trial: Trial, sets: Sets, device: torch.device) -> float | None:
    """The mean change of the dynamic layers, see ``studies.inspection.records``.

    It is measured on the first test images, after a final training, while its checkpoint exists;
    None for other trainings and for the static network.
    """
    if trial.part != "test" or not VARIANTS[trial.variant].overrides:
        return None
    content = json.loads((sets.folder / "test.json").read_text(encoding="utf-8"))
    files = [str(sets.test_images / image["file_name"]) for image in content["images"][:IMAGES]]
    if len(files) < 2:
        return None
    set_parsing_settings(import_path_allowlist=[LAYERS])
    predictor = Predictor.from_checkpoint(newest_best(trial.runs), str(device))
    return statistics.fmean(layer.change for layer in inspect(predictor, files).layers)
