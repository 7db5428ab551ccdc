"""The checkpoint from which an interrupted run resumes."""

from __future__ import annotations

import random
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint


class Stopped(SystemExit):
    """Raised when a signal has ended the training and a checkpoint is written.

    Attributes:
        number: the signal; the exit code is 128 + number, as in a shell.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


class LastCheckpoint(Checkpoint):
    """Writes ``checkpoints/last.ckpt`` often enough that an interruption loses little.

    It is written every ``every_n_steps`` steps, one step before and after each validation, at the
    end, and on Ctrl-C or SIGTERM: then after the current step, on which all ranks agree, and the
    process ends with code 128 + signal. A second Ctrl-C ends it at once. A run interrupted during
    a validation resumes one step before it, and so validates again. The signal handlers stay
    installed; the caller restores the previous ones after training.

    Each checkpoint contains the states of the random generators of all ranks, so that a resumed
    run draws the same numbers as an uninterrupted one.

    Args:
        every_n_steps: optimizer steps between two checkpoints, which is what kill -9 may lose.

    Attributes:
        path: of the file.
        signal: number of the received signal, or 0.
        saved_step: optimizer steps at the last checkpoint, -1 before the first.
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
            self._install_handlers()  # before the loader's workers start, which inherit them

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Replaces the handler that Lightning registers after setup(): it communicates with other
        # ranks inside the signal handler.
        self._install_handlers()
        if self._random_states is not None:
            rank = min(trainer.global_rank, len(self._random_states) - 1)
            _set_random_state(self._random_states[rank])
            self._random_states = None

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self._in_step = True
        # Lightning numbers logged values by this count, which is one behind in a checkpoint
        # written at the end of a run.
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._in_step = False
        if trainer.fit_loop._should_accumulate():
            return
        if 0 < trainer.max_steps <= trainer.global_step:
            trainer.should_stop = True  # else Lightning does not validate after the last step
        received = self._signal_on_any_rank(trainer)
        validates_now = self._validates_after(trainer, batch_idx)
        step = trainer.global_step
        validates_next = step + 1 == trainer.max_steps or self._validates_after(
            trainer, batch_idx + 1
        )
        if not validates_now and (received or validates_next or step % self.every_n_steps == 0):
            self._save(trainer)
        if received:
            self.signal = received
            # Lightning logs the step's values only after this hook.
            trainer._logger_connector.update_train_step_metrics()
            raise Stopped(received)

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
        """Saves when the signal has also ended the loader's workers between two steps."""
        if not (self.signal and isinstance(exception, (RuntimeError, OSError))):
            return
        between_steps = trainer.training and not self._in_step and trainer.world_size == 1
        if between_steps and self.saved_step < trainer.global_step:
            self._save(trainer)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        state = _random_state()
        states = [state] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(states, state)
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

    def _signal_on_any_rank(self, trainer: Trainer) -> int:
        if trainer.world_size == 1:
            return self.signal
        flag = torch.tensor(self.signal, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return int(flag)

    def _install_handlers(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        # Replaces torch's handler, which would abort the step if the signal ended workers too; not
        # by SIG_DFL, of which Python complains if a SIGCHLD is pending.
        signal.signal(signal.SIGCHLD, lambda *_: None)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _random_state() -> dict[str, Any]:
    """The random generators' states as plain data, which loads with ``weights_only=True``."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": (name, [int(key) for key in keys], position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def _set_random_state(state: dict[str, Any]) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
