"""What happens beside the training: checkpoints, annealing, averaging, progress, pictures."""

from __future__ import annotations

import random
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import cv2
import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, TQDMProgressBar, WeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from condseg.data.images import read_image
from condseg.inference.drawing import draw, legible_scale
from condseg.layers import set_temperature
from condseg.structures import Batch


class Stopped(SystemExit):
    """Training ended by a signal, with a checkpoint left behind.

    Attributes:
        number: of the signal; the exit code is 128 + number, as a shell has it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


class LastCheckpoint(Checkpoint):
    """Keeps ``checkpoints/last.ckpt`` so new that no end of the process loses much.

    It is written every so many steps, one step before each validation, after each validation, at
    the end, and when Ctrl-C or SIGTERM comes: then after the step at hand, on which all ranks
    agree, and the process ends with code 128 + signal. A second Ctrl-C ends it at once. A run
    that is ended in a validation takes up the step before it, and so validates again. The signals'
    handlers stay; whoever goes on after the training puts back the former ones.

    The states of the random generators of all ranks are in each checkpoint, for a run that goes
    on draws what it would have drawn.

    Args:
        every_n_steps: optimizer steps between two writings; what kill -9 may cost.

    Attributes:
        path: of the file.
        signal: number of the one that came, or 0.
        saved_step: optimizer steps at the last writing, -1 before the first.
    """

    def __init__(self, every_n_steps: int = 500) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps is {every_n_steps}; 1 or more is allowed")
        self.every_n_steps = every_n_steps
        self.path: Path | None = None
        self.signal = 0
        self.saved_step = -1
        self._in_step = False
        self._random_states: list[dict[str, Any]] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            folder = trainer.log_dir or trainer.default_root_dir
            self.path = Path(folder) / "checkpoints" / "last.ckpt"
            self._listen()  # before the loader's workers start: they inherit it and live on

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning's own handler, registered since, talks to other ranks from inside a signal.
        self._listen()
        if self._random_states is not None:
            rank = min(trainer.global_rank, len(self._random_states) - 1)
            _set_random_states(self._random_states[rank])
            self._random_states = None

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self._in_step = True
        # Lightning numbers what is logged by a count that is one behind in a checkpoint that was
        # written at the end of a run.
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._in_step = False
        if trainer.fit_loop._should_accumulate():
            return
        if 0 < trainer.max_steps <= trainer.global_step:
            trainer.should_stop = True  # Lightning validates after the last step only if told so
        asked = self._asked_on_any_rank(trainer)
        validates = self._validates_after(trainer, batch_idx)
        step = trainer.global_step
        soon = step + 1 == trainer.max_steps or self._validates_after(trainer, batch_idx + 1)
        if not validates and (asked or soon or step % self.every_n_steps == 0):
            self._save(trainer)
        if asked:
            self.signal = asked
            # Lightning would log the step only after this hook.
            trainer._logger_connector.update_train_step_metrics()
            raise Stopped(asked)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        if self.signal and not trainer.sanity_checking:
            raise Stopped(self.signal)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.saved_step != trainer.global_step:
            self._save(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """The signal took the loader's workers, too, while the next batch was waited for."""
        if not (self.signal and isinstance(exception, (RuntimeError, OSError))):
            return
        between = trainer.training and not self._in_step and trainer.world_size == 1
        if between and self.saved_step < trainer.global_step:
            self._save(trainer)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        own = _random_states()
        states = [own] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(states, own)
        checkpoint["random_states"] = states

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._random_states = checkpoint.get("random_states")

    def _save(self, trainer: Trainer) -> None:
        assert self.path is not None
        trainer.save_checkpoint(self.path, weights_only=False)
        self.saved_step = trainer.global_step

    @staticmethod
    def _validates_after(trainer: Trainer, batch_idx: int) -> bool:
        """Whether Lightning's loop validates after this batch of the epoch."""
        if not trainer.enable_validation:
            return False
        every = trainer.check_val_every_n_epoch
        if every is not None and (trainer.current_epoch + 1) % every:
            return False
        if trainer.should_stop:
            return True
        done = batch_idx + 1
        if every is None:
            done += trainer.fit_loop.total_batch_idx - trainer.fit_loop.batch_idx
        return trainer.val_check_batch is not None and done % trainer.val_check_batch == 0

    def _asked_on_any_rank(self, trainer: Trainer) -> int:
        if trainer.world_size == 1:
            return self.signal
        flag = torch.tensor(self.signal, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return int(flag)

    def _listen(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        # Workers that the signal ended as well shall not end the step at hand by torch's handler.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _random_states() -> dict[str, Any]:
    """Plain data only, so that a checkpoint loads without running code."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": (kind, [int(key) for key in keys], position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def _set_random_states(states: dict[str, Any]) -> None:
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"].cpu())


class TemperatureAnnealing(Callback):
    """Lets the attentions' temperature fall from ``start`` to 1, a little at every step.

    temperature(t) = max(1, start - (start - 1) t / steps)

    A flat softmax at the start lets all experts learn. The value is a buffer of the layers, so it
    is in the checkpoint. Layers without a temperature are left alone.

    Args:
        start: temperature at step 0, 1 or more.
        steps: optimizer steps until it is 1; 0 has it 1 throughout.

    Source: Dynamic Convolution (CVPR 2020), section 3.3: 30 to 1 in the first 10 epochs; ODConv
    (ICLR 2022) takes it over.
    """

    def __init__(self, start: float = 30.0, steps: int = 10_000) -> None:
        if start < 1:
            raise ValueError(f"start is {start}; a temperature of 1 or more is allowed")
        if steps < 0:
            raise ValueError(f"steps is {steps}; 0 or more is allowed")
        self.start = start
        self.steps = steps

    def temperature(self, step: int) -> float:
        """The temperature of an optimizer step."""
        done = min(step / self.steps, 1.0) if self.steps else 1.0
        return self.start + (1.0 - self.start) * done

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        set_temperature(pl_module, self.temperature(trainer.global_step))


class ExponentialAveraging(WeightAveraging):
    """An exponential moving average of the weights, which is what is evaluated and saved.

    average <- d average + (1 - d) weights, with d = min(decay, (1 + t) / (10 + t)) after t steps,
    so that the average does not hang on the beginning of a short run. Statistics of batch norms
    are averaged alike; all other buffers are copied.

    Args:
        decay: d of a step, in the long run.
        every_n_steps: from step 1 on, only these are averaged, with d^n in place of d: nearly the
            same average for less time.

    Source: the warm-up of d is that of TensorFlow's ``ExponentialMovingAverage``.
    """

    def __init__(self, decay: float = 0.999, every_n_steps: int = 1) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; 0 up to but not 1 is allowed")
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps is {every_n_steps}; 1 or more is allowed")
        self.every_n_steps = every_n_steps

        def average(means: list[Tensor], values: list[Tensor], count: Tensor | int) -> None:
            t = float(count) * every_n_steps
            if means[0].is_floating_point():  # the tensors of a list are of one dtype
                kept = min(decay, (1 + t) / (10 + t)) ** every_n_steps
                torch._foreach_lerp_(means, values, 1 - kept)
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


class Progress(TQDMProgressBar):
    """Lightning's bar with the losses, pictures a second and the time to the end of the run.

    Args:
        refresh_rate: steps between two drawings; 0 shows no bar.
    """

    def __init__(self, refresh_rate: int = 1) -> None:
        # A log file wants few lines; a terminal redraws one.
        super().__init__(refresh_rate if sys.stderr.isatty() else 20 * refresh_rate)
        self._start_time = 0.0
        self._start_step = 0
        self._pictures = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._start_time, self._start_step, self._pictures = 0.0, trainer.global_step, 0

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        if self._start_time == 0.0:  # the first step warms up: it would spoil the average
            self._start_time, self._start_step = time.monotonic(), trainer.global_step
        else:
            self._pictures += len(batch) * trainer.world_size
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
            items["images/s"] = f"{self._pictures / seconds:.1f}"
            left = float(trainer.estimated_stepping_batches) - trainer.global_step
            items["ETA"] = _clock(left * seconds / steps)
        return items


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


class ValidationPictures(Callback):
    """Draws the detections of the first validation pictures into the run folder and TensorBoard.

    They come as ``pictures/step_000500/NAME.jpg``.

    Args:
        count: pictures a validation; 0 draws none.
        score: detections below it are left out of the drawing.
    """

    def __init__(self, count: int = 4, score: float = 0.45) -> None:
        if count < 0:
            raise ValueError(f"count is {count}; 0 or more is allowed")
        self.count = count
        self.score = score
        self._drawn = 0
        self._folder: Path | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        log_dir = trainer.log_dir  # all ranks take part in asking
        self._folder = Path(log_dir) / "pictures" if log_dir else None

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
        for info, found in pairs[: self.count - self._drawn]:
            image = read_image(info.file_name)
            scale = legible_scale(*image.shape[:2])
            picture = draw(image, found, names, self.score, scale=scale)
            folder = self._folder / f"step_{trainer.global_step:06d}"
            folder.mkdir(parents=True, exist_ok=True)
            name = Path(info.file_name).stem
            cv2.imwrite(str(folder / f"{name}.jpg"), picture[:, :, ::-1])
            _to_tensorboard(trainer.loggers, name, picture, trainer.global_step)
            self._drawn += 1


def _to_tensorboard(loggers: Sequence[Any], name: str, picture: Any, step: int) -> None:
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(f"validation/{name}", picture, step, dataformats="HWC")
