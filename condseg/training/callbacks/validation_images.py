"""Drawings of detections during training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from numpy.typing import NDArray

from condseg.inference import SCORE_THRESHOLD
from condseg.inference.drawing import draw, legible_scale, reduced
from condseg.structures import Batch


class ValidationImages(Callback):
    """Draws the detections in the first validation images, as files and for the loggers.

    The files are ``images/step_000500/NAME.jpg`` in the run folder. TensorBoard and loggers with
    ``log_image``, such as W&B's, show them as ``validation/NAME``. Large images are reduced.

    Args:
        count: images per validation; 0 draws none.
        score: detections with a lower score are not drawn.
    """

    def __init__(self, count: int = 4, score: float = SCORE_THRESHOLD) -> None:
        if count < 0:
            raise ValueError(f"count is {count}; 0 or more is allowed")
        self.count = count
        self.score = score
        self._drawn = 0
        self._folder: Path | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        log_dir = trainer.log_dir  # a collective call: on all ranks
        self._folder = Path(log_dir) / "images" if log_dir else None

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._drawn = 0

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero or self._folder is None:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        names = [category.name for category in data.categories]
        pairs = list(zip(batch.infos, outputs["detections"], strict=True))
        for info, detections in pairs[: self.count - self._drawn]:
            image = data.val_dataset.image(info.image_id)
            scale = legible_scale(*image.shape[:2])
            drawing = reduced(draw(image, detections, names, self.score, scale=scale))
            folder = self._folder / f"step_{trainer.global_step:06d}"
            folder.mkdir(parents=True, exist_ok=True)
            name = Path(info.file_name).stem
            cv2.imwrite(str(folder / f"{name}.jpg"), drawing[:, :, ::-1])
            _log(trainer.loggers, f"validation/{name}", drawing, trainer.global_step)
            self._drawn += 1


def _log(loggers: Sequence[Any], tag: str, drawing: NDArray[np.uint8], step: int) -> None:
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(tag, drawing, step, dataformats="HWC")
        elif hasattr(logger, "log_image"):
            logger.log_image(tag, [drawing], step)
