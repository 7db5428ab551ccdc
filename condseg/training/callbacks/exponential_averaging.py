"""An exponential moving average of the weights."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class ExponentialAveraging(WeightAveraging):
    """Evaluates and saves an exponential moving average of the weights.

    average <- d average + (1 - d) weights, with d = min(decay, (1 + t) / (10 + t)) after t steps,
    so that the average of a short run does not depend on its first weights. The running statistics
    of batch norms are averaged too; all other buffers are copied.

    Args:
        decay: d after many steps.
        every_n_steps: the average is updated every n steps, with d^n in place of d.

    Source: the warm-up of d is that of TensorFlow's ``ExponentialMovingAverage``.
    """

    def __init__(self, decay: float = 0.999, every_n_steps: int = 1) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; 0 or more and below 1 is allowed")
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps is {every_n_steps}; 1 or more is allowed")
        self.every_n_steps = every_n_steps

        def average(means: list[Tensor], values: list[Tensor], count: Tensor | int) -> None:
            t = float(count) * every_n_steps
            if means[0].is_floating_point():  # all tensors of a list have the same dtype
                d = min(decay, (1 + t) / (10 + t)) ** every_n_steps
                torch._foreach_lerp_(means, values, 1 - d)
            else:
                torch._foreach_copy_(means, values)

        super().__init__(use_buffers=True, multi_avg_fn=average)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return step_idx is not None and step_idx % self.every_n_steps == 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        assert self._average_model is not None
        if self._latest_update_step != trainer.global_step:
            return
        averaged = dict(self._average_model.module.named_buffers())
        for name, buffer in pl_module.named_buffers():
            if not name.endswith(("running_mean", "running_var")):
                averaged[name].copy_(buffer)
