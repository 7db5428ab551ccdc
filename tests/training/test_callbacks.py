"""Temperature annealing, weight averaging, and the callbacks' arguments."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from condseg.layers import ODConv2d, set_temperature
from condseg.structures import Batch, Category, Detections, ImageInfo
from condseg.training.callbacks import (
    ExponentialAveraging,
    LastCheckpoint,
    LoaderTimeout,
    TemperatureAnnealing,
    ValidationImages,
)


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (partial(ExponentialAveraging, -0.1), "decay is -0.1; 0 or more and below 1"),
        (partial(ExponentialAveraging, 1.0), "decay is 1.0; 0 or more and below 1"),
        (partial(ExponentialAveraging, every_n_steps=0), "every_n_steps is 0; 1 or more"),
        (partial(LastCheckpoint, 0), "every_n_steps is 0; 1 or more"),
        (partial(LastCheckpoint, keep_last=0), "keep_last is 0; 1 or more"),
        (partial(LoaderTimeout, -1.0), "seconds is -1.0; 0 or more"),
        (partial(ValidationImages, -1), "count is -1; 0 or more"),
        (partial(TemperatureAnnealing, 0.5), "start is 0.5; a temperature of 1 or more"),
        (partial(TemperatureAnnealing, steps=-1), "steps is -1; 0 or more"),
    ],
)
def test_wrong_arguments(callback: Callable[[], Callback], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        callback()


def test_temperature_falls_linearly_to_one() -> None:
    annealing = TemperatureAnnealing(start=30.0, steps=10)
    assert [annealing.temperature(step) for step in (0, 5, 10, 99)] == [30, 15.5, 1, 1]
    assert TemperatureAnnealing(steps=0).temperature(0) == 1


def test_drawings_for_loggers_with_log_image(tmp_path: Path) -> None:
    """W&B's logger, and others of the kind, take a list of arrays."""
    logged: dict[str, Any] = {}

    class WithImages:
        def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
            logged[key] = (images[0].shape, step)

    image = np.zeros((1000, 2600, 3), np.uint8)
    found = Detections(
        torch.tensor([[2.0, 3.0, 900.0, 800.0]]),
        torch.tensor([0.9]),
        torch.tensor([0]),
        torch.ones(1, 1000, 2600, dtype=torch.bool),
    )
    info = ImageInfo(7, "some/street.png", (1000, 2600), (1000, 2600))
    trainer = Mock(
        Trainer,
        log_dir=str(tmp_path),
        sanity_checking=False,
        is_global_zero=True,
        global_step=50,
        loggers=[object(), WithImages()],
        datamodule=SimpleNamespace(
            categories=[Category(1, "cup")],
            val_dataset=SimpleNamespace(image=lambda image_id: image if image_id == 7 else None),
        ),
    )
    module, batch = Mock(LightningModule), Mock(Batch, infos=[info, info])
    drawer = ValidationImages(count=1)
    drawer.setup(trainer, module, "fit")
    drawer.on_validation_epoch_start(trainer, module)
    drawer.on_validation_batch_end(trainer, module, {"detections": [found, found]}, batch, 0)
    assert logged == {"validation/street": ((492, 1280, 3), 50)}
    assert cv2.imread(str(tmp_path / "images/step_000050/street.jpg")).shape == (492, 1280, 3)


@pytest.mark.parametrize("every", [1, 3])
def test_moving_average(every: int) -> None:
    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.conv = ODConv2d(2, 2, 3, padding=1, num_experts=2)

    module = Module()
    averaging = ExponentialAveraging(decay=0.5, every_n_steps=every)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, barebones=False)
    averaging.setup(trainer, module, "fit")
    expected = module.conv.weight.detach().clone()
    steps_done = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step
    for step in range(1, 9):
        with torch.no_grad():
            module.conv.weight.add_(1.0)
        set_temperature(module, 10.0 - step)
        steps_done.total.completed = step
        averaging.on_train_batch_end(trainer, module, None, None, step)
        t = step - 1  # the first update copies
        if t % every:
            continue
        decay = min(0.5, (1 + t) / (10 + t)) ** every if t else 0.0
        expected = decay * expected + (1 - decay) * module.conv.weight.detach()
        assert averaging._average_model is not None
        average = averaging._average_model.module.conv
        torch.testing.assert_close(average.weight, expected)
        assert float(average.temperature) == 10.0 - step
