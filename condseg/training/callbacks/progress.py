"""The progress bar."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from condseg.structures import Batch


class Progress(TQDMProgressBar):
    """Lightning's progress bar with the losses, images per second and the remaining time.

    Args:
        refresh_rate: steps between two updates; 0 shows no bar.
    """

    def __init__(self, refresh_rate: int = 1) -> None:
        # A terminal redraws one line; a log file gets one line per update.
        super().__init__(refresh_rate if sys.stderr.isatty() else 20 * refresh_rate)
        self._start_time = 0.0
        self._start_step = 0
        self._images = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._start_time, self._start_step, self._images = 0.0, trainer.global_step, 0

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        if self._start_time == 0.0:  # the first step includes start-up costs
            self._start_time, self._start_step = time.monotonic(), trainer.global_step
        else:
            self._images += len(batch) * trainer.world_size
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_start(trainer, pl_module)
        self._validation_start = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if self._start_time:
            self._start_time += time.monotonic() - self._validation_start

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        items: dict[str, int | str | float | dict[str, float]] = {
            name.removeprefix("train/").removeprefix("loss_"): value
            for name, value in super().get_metrics(trainer, pl_module).items()
            if name.startswith("train/")
        }
        seconds = time.monotonic() - self._start_time
        steps = trainer.global_step - self._start_step
        if self._start_time and steps and seconds:
            items["images/s"] = f"{self._images / seconds:.1f}"
            remaining = float(trainer.estimated_stepping_batches) - trainer.global_step
            items["ETA"] = str(timedelta(seconds=round(remaining * seconds / steps)))
        return items
