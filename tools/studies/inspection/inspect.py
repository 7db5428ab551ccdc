"""Runs a trained model on images and measures how much its dynamic layers depend on the input."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from condseg.data.transforms import resized
from condseg.inference.predictor import Predictor
from condseg.inference.sources import find_depths, find_images, read_pair
from studies.inspection.observe import DYNAMIC, Observer
from studies.inspection.records import Inspection


def inspect(
    predictor: Predictor,
    inputs: Sequence[str],
    score: float = 0.4,
    depth: str | Path | None = None,
) -> Inspection:
    """Run the model on images, one at a time, and observe its dynamic layers.

    Args:
        predictor: the model.
        inputs: image files, folders, patterns.
        score: min score at which a detection assigns its class to the image.
        depth: depth map of a single image, or a folder of them, for a network that takes depth.

    Raises:
        ValueError: the model has no dynamic layer, there is no readable image, ``score`` is
            outside 0..1, or depth is missing.
    """
    if not 0 <= score <= 1:
        raise ValueError(f"score is {score}; 0..1 is allowed")
    if not any(isinstance(module, DYNAMIC) for module in predictor.network.modules()):
        raise ValueError(
            "the checkpoint's network has no dynamic layer "
            "(model.network.backbone.conv and model.network.mask_filter configure them)"
        )
    files, without = find_images(inputs)
    failed = [f"no images in {text!r}" for text in without]
    images: list[Path] = []
    classes: dict[str, list[int]] = {name: [] for name in predictor.names}
    with Observer.attached(predictor.network) as observer:
        for path, depth_file in zip(files, find_depths(predictor, files, depth), strict=True):
            try:
                image, depth_map = read_pair(path, depth_file)
            except ValueError as error:
                failed.append(str(error))
                continue
            restored = predictor.restored
            size = resized(image.shape[:2], restored.short_side, restored.max_long_side)
            observer.image, observer.size = len(images), size
            detections = predictor(image, depth_map)
            for label in set(detections.labels[detections.scores >= score].tolist()):
                classes[predictor.names[label]].append(len(images))
            images.append(path)
    if not images:
        raise ValueError(f"no image to inspect: {'; '.join(failed)}")
    detected = {name: at for name, at in classes.items() if at}
    return Inspection(images, detected, score, *observer.results(), failed)
