"""The schedule of the attentions' temperature."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from condseg.layers import set_temperature


class TemperatureAnnealing(Callback):
    """Lowers the attentions' temperature linearly from ``start`` to 1.

    temperature(t) = max(1, start - (start - 1) t / steps)

    The nearly uniform softmax of the first steps trains all experts. The temperature is a buffer
    of the layers, so checkpoints contain it. Layers without a temperature are unaffected.

    Args:
        start: temperature at step 0, 1 or more.
        steps: optimizer steps until it is 1; with 0 it is 1 throughout.

    Source: Dynamic Convolution (CVPR 2020), section 3.3: 30 to 1 in the first 10 epochs; also in
    ODConv (ICLR 2022).
    """

    def __init__(self, start: float = 30.0, steps: int = 10_000) -> None:
        if start < 1:
            raise ValueError(f"start is {start}; a temperature of 1 or more is allowed")
        if steps < 0:
            raise ValueError(f"steps is {steps}; 0 or more is allowed")
        self.start = start
        self.steps = steps

    def temperature(self, step: int) -> float:
        """The temperature at an optimizer step."""
        progress = min(step / self.steps, 1.0) if self.steps else 1.0
        return self.start + (1.0 - self.start) * progress

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        set_temperature(pl_module, self.temperature(trainer.global_step))
