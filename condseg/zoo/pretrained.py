"""Models of other projects: converting, downloading by name, and starting a training from them."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from condseg.data.categories import read_categories
from condseg.models.backbones.files import load_strict, read_state
from condseg.models.backbones.pickled import read_pickled
from condseg.structures import Category
from condseg.zoo.checkpoint import (
    RECIPE,
    Restored,
    build,
    check_content,
    check_fit,
    load,
    network_state,
    newest_best,
    recipe_of,
    restore,
    restore_content,
)
from condseg.zoo.detectors import import_detector
from condseg.zoo.hub import fetch_model
from condseg.zoo.registry import DEFAULT_MODEL, MODELS, unknown_model
from condseg.zoo.remote import fetch_checkpoint, is_remote

log = logging.getLogger(__name__)


def coco_categories() -> tuple[Category, ...]:
    """The 80 classes of COCO with their ids, which have gaps."""
    weights = torchvision.models.detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1
    names = weights.meta["categories"]
    return tuple(Category(i, n) for i, n in enumerate(names) if n not in ("__background__", "N/A"))


def convert(path: str | Path, annotations: str | Path | None = None) -> dict[str, Any]:
    """Converts another project's checkpoint.

    Args:
        path: a CondInst or BoxInst of AdelaiDet or mmdetection, or its RTMDet-Ins.
        annotations: COCO json with the classes it was trained on. Without one, 80 classes are
            COCO's, and other classes are numbered.

    Returns:
        The content of a condseg checkpoint.

    Raises:
        ValueError: the file cannot be read, is of an unknown kind, has unknown tensors or lacks
            some, or has another number of classes than the annotations.
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
            "short_side": detector.sides[0],
            "max_long_side": detector.sides[1],
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
    """A published model, converted; see :func:`condseg.zoo.hub.fetch_model`."""
    return convert(fetch_model(name, offline=offline))


def open_model(
    checkpoint: str | Path | None = None, model: str | None = None, *, offline: bool = False
) -> Restored:
    """A trained model: of a checkpoint, a published one, or by default the newest run's best.

    The checkpoint is a path, an address, or of the Hugging Face hub, see ``condseg.zoo.remote``.
    Without any run, the default is ``registry.DEFAULT_MODEL``. ``offline`` downloads nothing.

    Raises:
        ValueError: both are named, or the model cannot be read or downloaded.
    """
    if checkpoint is not None and model is not None:
        raise ValueError(f"--checkpoint {checkpoint} and --model {model}: only one is allowed")
    if model is None and (file := checkpoint or newest_best()):
        if is_remote(str(file)):
            path = fetch_checkpoint(str(file), offline=offline)
            return restore_content(load(path), f"checkpoint {file}")
        return restore(file)
    try:
        content = model_content(model or DEFAULT_MODEL, offline=offline)
    except ValueError as error:
        if model is not None:
            raise
        raise ValueError(
            f"no --checkpoint, none under runs/, and {DEFAULT_MODEL} is not available: {error}. "
            "Train one in minutes: 'condseg train --config quickstart'"
        ) from error
    return restore_content(content, f"model {model or DEFAULT_MODEL}")


def start_content(source: str) -> dict[str, Any]:
    """The content of a checkpoint of condseg or another project, or of a published model.

    Raises:
        ValueError: it cannot be read or downloaded.
    """
    path = fetch_checkpoint(source) if is_remote(source) else Path(source)
    if not path.is_file():
        if source in MODELS:
            return model_content(source)
        raise ValueError(f"--init_from {source}: no such file; {unknown_model(source)}")
    if path.suffix != ".safetensors":
        content = read_pickled(path, "--init_from")
        if isinstance(content, dict) and RECIPE in content:
            check_content(content, f"--init_from {path}")
            check_fit(content, f"--init_from {path}")
            return content
    return convert(path)


def start_from(
    network: nn.Module,
    content: Mapping[str, Any],
    categories: Sequence[Category],
    source: str | os.PathLike[str],
) -> str:
    """Loads a checkpoint's tensors into a network with other ``categories`` or the same.

    If the classes differ, the classifier is not loaded. Returns what was loaded, for the log.

    Raises:
        ValueError: a tensor is missing, unknown or of another shape.
    """
    state = network_state(content)
    names = [str(entry["name"]) for entry in recipe_of(content, str(source))["categories"]]
    if names == [category.name for category in categories]:
        load_strict(network, state, source=str(source))
        return f"started from {source}: all {len(state)} tensors, its {len(names)} classes"
    classifiers = ("head.class_logits.", "mask_branch.semantic_logits.")
    initialized = [key for key in state if key.startswith(classifiers)]
    kept: dict[str, Tensor] = {key: t for key, t in state.items() if key not in initialized}
    load_strict(network, kept, source=str(source), may_be_missing=initialized)
    return (
        f"started from {source}: {len(kept)} tensors; initialized for {len(categories)} classes "
        f"instead of {len(names)}: {', '.join(initialized)}"
    )
