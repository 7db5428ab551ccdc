"""A predictor whose network is a file of another engine."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from condseg.data.transforms import resize_transform
from condseg.export import EXPORTED, EngineName
from condseg.export.engines import Arrays, Engine, open_engine
from condseg.inference.predictor import Predictor
from condseg.inference.stages import Stages
from condseg.ops.islands import without_islands
from condseg.ops.paste import paste
from condseg.structures import Batch, Detections, ImageInfo
from condseg.zoo.checkpoint import Restored, describe
from condseg.zoo.pretrained import open_model

FIXED = (
    *("candidate_threshold", "threshold_with_centerness", "pre_nms_topk", "class_agnostic_nms"),
    *("clip_before_nms", "mask_interpolation"),
)
"""Options of the post-process that are in the graph."""


class EnginePredictor(Predictor):
    """Predicts with an exported model; images of a batch are processed one by one.

    Args:
        engine: executes the model.
        score_threshold: overrides the model's.
        max_detections: per image; overrides the model's.

    Raises:
        ValueError: a value is outside its range, or the file's configuration cannot be read.
    """

    def __init__(
        self,
        engine: Engine,
        score_threshold: float | None = None,
        max_detections: int | None = None,
    ) -> None:
        if engine.facts.get("masks") != "logits":
            raise ValueError("the model was exported with masks of full size; logits are needed")
        self.engine = engine
        self.restored = _described(engine.facts)
        self.network = self.restored.network  # without weights
        self.precision, self.device = "32-true", torch.device("cpu")
        self.postprocess = self.restored.postprocess
        self.categories = self.restored.categories
        self.names = tuple(category.name for category in self.categories)
        self.transform = resize_transform(self.restored.short_side, self.restored.max_long_side)
        options = {"score_threshold": score_threshold, "max_detections": max_detections}
        self.postprocess = self.with_options(**options).postprocess

    @classmethod
    def of_file(
        cls, engine: EngineName, path: str | Path, device: str = "cpu", **options: Any
    ) -> EnginePredictor:
        """The predictor of a file; further arguments are those of the class."""
        return cls(open_engine(engine, path, device), **options)

    def with_options(self, **options: Any) -> EnginePredictor:
        other = copy.copy(self)
        other.postprocess = self.postprocess.replaced(**options)
        changed = vars(other.postprocess)
        for name in FIXED:
            if changed[name] != getattr(self.restored.postprocess, name):
                raise ValueError(f"{name} is fixed in an exported model; export it with another")
        return other

    def detect(
        self, batch: Batch, meanwhile: Callable[[], object] = lambda: None
    ) -> list[Detections]:
        meanwhile()
        return [self._predict(batch, index, info) for index, info in enumerate(batch.infos)]

    def _predict(self, batch: Batch, index: int, info: ImageInfo) -> Detections:
        height, width = info.size
        inputs = {"images": batch.images[index : index + 1, :, :height, :width].numpy()}
        if batch.depth is not None:
            inputs["depth"] = batch.depth[index : index + 1, :height, :width].numpy()
        found = self._run(inputs)
        boxes = torch.from_numpy(found["boxes"])
        (rows, columns), original = info.size, info.original_size
        boxes = boxes * boxes.new_tensor((original[1] / columns, original[0] / rows)).repeat(2)
        masks = self._paste(torch.from_numpy(found["masks"]), info)
        if not self.postprocess.keep_islands:
            masks = without_islands(masks, boxes)
        scores, labels = (torch.from_numpy(found[name]) for name in ("scores", "labels"))
        return Detections(boxes, scores, labels, masks)

    def _run(self, inputs: Arrays) -> Arrays:
        post = self.postprocess
        inputs["nms_threshold"] = np.array(post.nms_threshold, np.float32)
        inputs["max_detections"] = np.array([post.max_detections])
        if post.score_threshold is not None:
            inputs["score_threshold"] = np.array(post.score_threshold, np.float32)
        if "mask_threshold" in self.engine.inputs:
            inputs["mask_threshold"] = np.array(post.mask_threshold, np.float32)
        return self.engine(inputs)

    def _paste(self, masks: torch.Tensor, info: ImageInfo) -> torch.Tensor:
        stride = int(self.engine.facts["mask_stride"])
        threshold = self.postprocess.mask_threshold
        how = (threshold, self.postprocess.mask_interpolation)
        return paste(masks, stride, info.size, info.original_size, *how)

    def timed(self, stages: Stages) -> AbstractContextManager[None]:
        """The stages are "engine", the exported model, and "post-process"."""
        return stages.timed_calls((self, "detect", "post-process"), (self, "_run", "engine"))


def _described(facts: Mapping[str, str]) -> Restored:
    try:
        recipe = json.loads(facts["config"])
        return describe(recipe, facts["source"])
    except (KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"the model's configuration cannot be read ({error})") from error


def open_predictor(
    checkpoint: str | Path | None = None,
    model: str | None = None,
    *,
    offline: bool = False,
    engine: EngineName | None = None,
    device: str = "auto",
    precision: str = "32-true",
    **options: Any,
) -> Predictor:
    """The predictor of a checkpoint, a published model, or an exported file.

    Args:
        checkpoint: of condseg, or a file of ``condseg export``, which the ending says.
        model, offline: see :func:`condseg.zoo.pretrained.open_model`.
        engine: of an exported file; by default onnxruntime for .onnx, OpenVINO for .xml.
        device, precision, options: see :class:`Predictor`.

    Raises:
        ValueError: a combination is not supported, or the model cannot be read.
    """
    suffix = Path(checkpoint or "").suffix
    if suffix not in EXPORTED:
        if engine is not None:
            raise ValueError(
                f"engine is {engine!r}, checkpoint is {checkpoint}; it executes a file of condseg "
                f"export ({', '.join(EXPORTED)})"
            )
        restored = open_model(checkpoint, model, offline=offline)
        return Predictor(restored, device, precision=precision, **options)
    assert checkpoint is not None
    if precision != "32-true":
        raise ValueError(f"precision is {precision!r}; 32-true is supported with {checkpoint}")
    device = "cpu" if device == "auto" else device
    return EnginePredictor.of_file(engine or EXPORTED[suffix], checkpoint, device, **options)
