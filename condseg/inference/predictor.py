"""A trained model applied to images."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from condseg.data.collate import collate
from condseg.data.limits import check_pixels
from condseg.data.transforms import resize_transform
from condseg.inference.device import pick_device
from condseg.inference.stages import Stages
from condseg.models.optimize import optimize_for_inference
from condseg.ops.device import to_host
from condseg.structures import Batch, Detections, ImageInfo, Sample, Targets
from condseg.zoo.checkpoint import Restored, newest_best, restore

PRECISIONS = ("32-true", "bf16-mixed")


class Predictor:
    """Predicts the instances of images, with the transform and settings of the training.

    Args:
        restored: network, post-process, classes and input size of a checkpoint.
        device: "auto", "cpu", "cuda", "cuda:1", "mps"; the network is moved there.
        score_threshold: overrides the checkpoint's.
        max_detections: per image; overrides the checkpoint's.
        precision: as in Lightning; "bf16-mixed" (autocast) is faster on hardware with bfloat16
            instructions, and less accurate.

    Raises:
        ValueError: a value is outside its range, or there is no such device.
    """

    def __init__(
        self,
        restored: Restored,
        device: str = "auto",
        score_threshold: float | None = None,
        max_detections: int | None = None,
        precision: str = "32-true",
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision is {precision!r}; {' or '.join(PRECISIONS)} is allowed")
        self.precision = precision
        self.device = pick_device(device)
        self.network = optimize_for_inference(restored.network.to(self.device))
        self.postprocess = restored.postprocess.replaced(
            score_threshold=score_threshold, max_detections=max_detections
        )
        self.restored = restored
        self.categories = restored.categories
        self.names = tuple(category.name for category in restored.categories)
        self.transform = resize_transform(restored.short_side, restored.max_long_side)

    @classmethod
    def from_checkpoint(
        cls, path: str | Path | None = None, *settings: Any, **options: Any
    ) -> Predictor:
        """The predictor of a checkpoint file, by default the newest run's best.

        Further arguments are those of :class:`Predictor`.

        Raises:
            ValueError: also if there is no checkpoint, or it cannot be read.
        """
        path = path or newest_best()
        if path is None:
            raise ValueError(
                "no --checkpoint, and none under runs/; train one in minutes: 'condseg train "
                "--config quickstart'"
            )
        return cls(restore(path), *settings, **options)

    def with_options(self, **options: Any) -> Predictor:
        """The same network with other options of its :class:`PostProcess`; None keeps its own.

        Raises:
            ValueError: a value is outside its range.
        """
        other = copy.copy(self)
        other.postprocess = self.postprocess.replaced(**options)
        return other

    def __call__(
        self, image: NDArray[np.uint8], depth: NDArray[np.uint16] | None = None
    ) -> Detections:
        """The instances of one image in its own pixels, best first, on the CPU.

        Args:
            image: (H, W, 3) RGB, 0..255, as of ``condseg.data.images.read_image``, of 1 to
                ``condseg.data.limits.MAX_PIXELS`` pixels.
            depth: (H, W), as of ``read_depth``, for a network with a depth encoder.

        Raises:
            ValueError: another shape or type, or depth is missing or not supported.
        """
        return self.predict(collate([self._sample(image, depth)]))[0]

    @torch.inference_mode()
    def predict(self, batch: Batch) -> list[Detections]:
        """The instances of each image of a batch in its original pixels, on the CPU."""
        found = self.detect(batch)
        tensors = to_host(*(t for d in found for t in (d.boxes, d.scores, d.labels, d.masks)))
        return [Detections(*tensors[i : i + 4]) for i in range(0, len(tensors), 4)]

    @torch.inference_mode()
    def detect(
        self, batch: Batch, meanwhile: Callable[[], object] = lambda: None
    ) -> list[Detections]:
        """:meth:`predict` on the predictor's device.

        ``meanwhile`` is called after the network was started, which a GPU then still computes.
        """
        batch = batch.to(self.device, non_blocking=True)
        kind, mixed = self.device.type, self.precision == "bf16-mixed"
        with torch.autocast(kind, torch.bfloat16, enabled=mixed):
            dense = self.network(batch.images, batch.sizes, batch.depth)
            meanwhile()
            return self.postprocess(dense, batch.infos, self.network.mask_logits)

    def timed(self, stages: Stages) -> AbstractContextManager[None]:
        """A context in which the time of :meth:`detect` is measured by stage.

        The stages are "pre-process", "backbone", "FPN", "heads" (the dense head, the mask branch
        and the depth encoder), "decode + NMS", "mask head" (and its controller) and
        "post-process" (masks to the image's size).
        """
        network = self.network
        depth = network.depth_encoder
        return stages.timed_calls(
            (self, "detect", "post-process"),
            (network, "forward", "pre-process"),
            (network.backbone, "forward", "backbone"),
            (network.pyramid, "forward", "FPN"),
            (network.head, "forward", "heads"),
            (network.mask_branch, "forward", "heads"),
            *([] if depth is None else [(depth, "forward", "heads")]),
            (self, "postprocess", "decode + NMS"),
            (network, "mask_logits", "mask head"),
            (self.postprocess, "paste", "post-process"),
        )

    def _sample(self, image: NDArray[np.uint8], depth: NDArray[np.uint16] | None) -> Sample:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(
                f"image is {image.dtype} of shape {image.shape}; uint8 (H, W, 3) allowed"
            )
        check_pixels(*image.shape[:2])
        if depth is not None and (depth.shape != image.shape[:2] or depth.dtype != np.uint16):
            raise ValueError(
                f"depth is {depth.dtype} of shape {depth.shape}; uint16 {image.shape[:2]} allowed"
            )
        maps = {} if depth is None else {"depth": depth}
        transformed = self.transform(image=image, **maps)
        resized = transformed["image"]
        height, width = resized.shape[:2]
        pixels = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
        no_targets = Targets(
            torch.zeros(0, 4),
            torch.zeros(0, dtype=torch.int64),
            torch.zeros(0, height, width, dtype=torch.bool),
        )
        depth_map = torch.from_numpy(transformed["depth"].astype(np.float32)) if maps else None
        info = ImageInfo(0, "", image.shape[:2], (height, width))
        return Sample(pixels, no_targets, info, depth_map)
