"""Models of other projects as checkpoints of this one: converted, fetched by name, started from."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from condseg.data.coco import read_categories
from condseg.models.backbones.files import load_strict, read_pickled, read_state
from condseg.structures import Category
from condseg.zoo.checkpoint import (
    RECIPE,
    Restored,
    build,
    network_state,
    newest_best,
    recipe_of,
    restore,
    restore_content,
)
from condseg.zoo.detectors import import_detector
from condseg.zoo.hub import fetch_model
from condseg.zoo.published import DEFAULT_MODEL, MODELS, unknown_model

log = logging.getLogger(__name__)


def coco_categories() -> tuple[Category, ...]:
    """The 80 classes of COCO with their ids, which have gaps."""
    weights = torchvision.models.detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1
    names = weights.meta["categories"]
    return tuple(Category(i, n) for i, n in enumerate(names) if n not in ("__background__", "N/A"))


def convert(path: str | Path, annotations: str | Path | None = None) -> dict[str, Any]:
    """Another project's checkpoint as the content of one of condseg's.

    Args:
        path: a CondInst or BoxInst of AdelaiDet or mmdetection.
        annotations: COCO json with the classes it was trained on; without one, 80 classes are
            COCO's, and another number has no names.

    Returns:
        What ``torch.save`` writes, :func:`condseg.zoo.checkpoint.restore` reads and training starts
        from.

    Raises:
        ValueError: the file cannot be read, is of no kind that is known, has tensors without a
            place or lacks some, or has another number of classes than the annotations.
    """
    detector = import_detector(read_state(path), str(path))
    categories = _categories(detector.network["num_classes"], annotations, str(path))
    model = {"network": detector.network, "postprocess": detector.postprocess}
    with torch.device("meta"):
        network, _ = build(model)
    load_strict(network, detector.state, source=f"{detector.source}'s {path}")
    return {
        "state_dict": {f"network.{key}": tensor for key, tensor in detector.state.items()},
        RECIPE: {
            "model": model,
            "categories": [{"id": c.id, "name": c.name} for c in categories],
            "short_side": 800,
            "max_long_side": 1333,
            "data": {"root": "data/coco"},
        },
        "source": detector.source,
    }


def _categories(
    num_classes: int, annotations: str | Path | None, source: str
) -> Sequence[Category]:
    if annotations is None:
        coco = coco_categories()
        if num_classes == len(coco):
            return coco
        log.warning(
            "%s has %d classes without names; --annotations names them", source, num_classes
        )
        return [Category(i + 1, f"class {i + 1}") for i in range(num_classes)]
    categories = read_categories(annotations)
    if len(categories) != num_classes:
        raise ValueError(
            f"{annotations}: has {len(categories)} classes, {source} has {num_classes}"
        )
    return categories


def model_content(name: str, *, offline: bool = False) -> dict[str, Any]:
    """A published model by its name: fetched if need be, checked, converted.

    Raises:
        ValueError: no such name, it cannot be fetched, or is not what it was.
    """
    return convert(fetch_model(name, offline=offline))


def open_model(
    checkpoint: str | Path | None = None, model: str | None = None, *, offline: bool = False
) -> Restored:
    """A model to find things with: a file's, a published one's, else the newest run's best.

    Where nothing was trained, it is ``published.DEFAULT_MODEL``.

    Args:
        checkpoint: a file that training or ``tools/convert.py`` wrote.
        model: name of a published model.
        offline: fetch nothing.

    Raises:
        ValueError: both are given, or the one cannot be had.
    """
    if checkpoint is not None and model is not None:
        raise ValueError(f"--checkpoint {checkpoint} and --model {model}: give one of them")
    if model is None:
        checkpoint = checkpoint or newest_best()
        if checkpoint is not None:
            return restore(checkpoint)
    try:
        content = model_content(model or DEFAULT_MODEL, offline=offline)
    except ValueError as error:
        if model is not None:
            raise
        raise ValueError(
            f"no checkpoint was given, there is none under runs/, and {DEFAULT_MODEL} cannot be "
            f"had: {error}. Train one in minutes with 'python tools/train.py --config "
            "quickstart.yaml', or give --checkpoint FILE"
        ) from error
    return restore_content(content, f"model {model or DEFAULT_MODEL}")


def start_content(asked: str) -> dict[str, Any]:
    """The checkpoint to start a training from.

    Args:
        asked: a checkpoint of condseg, another project's, or the name of a published model.

    Raises:
        ValueError: it cannot be read or fetched.
    """
    path = Path(asked)
    if not path.is_file():
        if asked in MODELS:
            return model_content(asked)
        raise ValueError(f"--init_from {asked}: no such file; {unknown_model(asked)}")
    if path.suffix != ".safetensors":
        content = read_pickled(path, "--init_from")
        if isinstance(content, dict) and RECIPE in content:
            return content
    return convert(path)


def start_from(
    network: nn.Module,
    content: Mapping[str, Any],
    categories: Sequence[Category],
    source: str | os.PathLike[str],
) -> str:
    """Loads a checkpoint's tensors, all but the classifier where the classes are other ones.

    Args:
        network: of the same structure, of as many classes as ``categories``.
        content: of the checkpoint.
        categories: of the training that begins.
        source: for messages.

    Returns:
        What was taken over, and what was not, for the log.

    Raises:
        ValueError: a tensor is missing, unknown or of another shape.
    """
    state = network_state(content)
    names = [str(entry["name"]) for entry in recipe_of(content, str(source))["categories"]]
    if names == [category.name for category in categories]:
        load_strict(network, state, source=str(source))
        return f"started from {source}: all {len(state)} tensors, its {len(names)} classes"
    classifiers = ("head.class_logits.", "mask_branch.semantic_logits.")
    remade = [key for key in state if key.startswith(classifiers)]
    kept: dict[str, Tensor] = {key: t for key, t in state.items() if key not in remade}
    load_strict(network, kept, source=str(source), may_be_missing=remade)
    return (
        f"started from {source}: {len(kept)} tensors; made anew for {len(categories)} classes in "
        f"place of {len(names)}: {', '.join(remade)}"
    )
