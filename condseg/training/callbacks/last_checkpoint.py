"""The checkpoint from which an interrupted run resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_info

from condseg.training.random_state import get_random_state, set_random_state
from condseg.training.signals import Signals, Stopped
from condseg.training.slurm import requeue, requeue_signal


class LastCheckpoint(Checkpoint):
    """Writes ``checkpoints/last.ckpt`` often enough that an interruption loses little.

    It is written every ``every_n_steps`` steps, one step before and after each validation, at the
    end, when the loader fails, and on Ctrl-C, SIGTERM, SIGHUP or SIGUSR1: then after the current
    step, on which all ranks agree, and the process ends with code 128 + signal. A second Ctrl-C
    ends it at once. A run interrupted during a validation resumes one step before it, and so
    validates again. Under SLURM, SIGUSR1 also requeues the job.

    The file that is replaced is kept as ``last_1.ckpt``, in case ``last.ckpt`` is damaged.

    Each checkpoint contains the states of the random generators of all ranks, so that a resumed
    run draws the same numbers as an uninterrupted one.

    Args:
        every_n_steps: optimizer steps between two checkpoints, which is what kill -9 may lose.
        keep_last: number of files that are kept: with 2 ``last_1.ckpt``, with 3 also
            ``last_2.ckpt``, which is older.

    Attributes:
        path: of the file.
        signals: the handlers of signals, from :meth:`setup` until the caller restores them.
        saved_step: optimizer steps at the last checkpoint, -1 before the first.
    """

    def __init__(self, every_n_steps: int = 500, keep_last: int = 2) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("keep_last", keep_last)):
            if value < 1:
                raise ValueError(f"{name} is {value}; 1 or more is allowed")
        self.every_n_steps, self.keep_last = every_n_steps, keep_last
        self.path: Path | None = None
        self.signals = Signals()
        self.saved_step = -1
        self._saved_end = False
        self._resumable = False  # whether a checkpoint of this moment resumes exactly
        self._random_states: list[dict[str, Any]] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            # Lightning runs callbacks in this order: a validation's best checkpoint is written
            # before the last one, which contains what the other callbacks know afterwards.
            others = [c for c in trainer.callbacks if c is not self]  # type: ignore[attr-defined]
            trainer.callbacks = [*others, self]  # type: ignore[attr-defined]
            folder = trainer.log_dir or trainer.default_root_dir
            self.path = Path(folder) / "checkpoints" / "last.ckpt"
            # Before the loader's workers start, which inherit them.
            self.signals.install(*requeue_signal(trainer))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Replaces the handler that Lightning registers after setup(): it communicates with other
        # ranks inside the signal handler.
        self.signals.install()
        self.signals.watch_workers()
        if self._random_states is not None:
            rank = min(trainer.global_rank, len(self._random_states) - 1)
            set_random_state(self._random_states[rank])
            self._random_states = None
        self._resumable = True

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.signals.deferred, self._resumable = True, False
        # Lightning numbers logged values by this count, which is one behind in a checkpoint
        # written at the end of a run.
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        accumulates = trainer.fit_loop._should_accumulate()
        if not accumulates:
            self._end_step(trainer, batch_idx)
        self.signals.deferred, self._resumable = False, not accumulates

    def _end_step(self, trainer: Trainer, batch_idx: int) -> None:
        last_step = int(trainer.estimated_stepping_batches)  # by max_steps or max_epochs
        if last_step <= trainer.global_step:
            trainer.should_stop = True  # else Lightning does not validate after the last step
        worker_error = self.signals.worker_error()
        signal, failed = self._on_any_rank(trainer, self.signals.received, worker_error is not None)
        ends = bool(signal or failed)
        validates_now = self._validates_after(trainer, batch_idx)
        step = trainer.global_step
        # Also after the last step: averaging of weights overwrites them before on_train_end().
        near_end = last_step - step in (0, 1)
        validates_next = self._validates_after(trainer, batch_idx + 1)
        regular = near_end or validates_next or step % self.every_n_steps == 0
        saves = not validates_now and (ends or regular)
        if saves or ends:
            # Lightning logs the step's values only after this hook, once more: a process killed
            # behind the checkpoint would lose them.
            trainer._logger_connector.update_train_step_metrics()
        if saves:
            self._save(trainer)
        if signal:
            self.signals.received = signal
            requeue(trainer, signal)
            raise Stopped(signal)
        if failed:
            raise worker_error or RuntimeError("DataLoader worker of another process failed")

    def on_validation_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        if self.signals.received and not trainer.sanity_checking:
            requeue(trainer, self.signals.received)
            raise Stopped(self.signals.received)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves if a callback has ended the training after the last checkpoint."""
        if _has_ended(trainer) and not self._saved_end:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.saved_step != trainer.global_step:
            self._save(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Saves after an error between two steps, such as one of the loader."""
        self.signals.deferred = True  # a killed worker is often noticed before its end is signalled
        resumable = self._resumable and trainer.training and trainer.world_size == 1
        if isinstance(exception, Exception) and resumable and self.saved_step < trainer.global_step:
            try:
                self._save(trainer)
            except Exception as error:  # the first error is the one to report
                rank_zero_info(f"no checkpoint after {trainer.global_step} steps: {error}")

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        state = get_random_state()
        states = [state] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(states, state)
        checkpoint["random_states"] = states
        checkpoint["ended"] = _has_ended(trainer)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._random_states = checkpoint.get("random_states")

    def _save(self, trainer: Trainer) -> None:
        assert self.path is not None
        options = {"keep": self.keep_last}
        trainer.save_checkpoint(self.path, weights_only=False, storage_options=options)
        self.saved_step, self._saved_end = trainer.global_step, _has_ended(trainer)

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

    @staticmethod
    def _on_any_rank(trainer: Trainer, *values: int) -> list[int]:
        """The max of each value over all ranks."""
        if trainer.world_size == 1:
            return list(values)
        flags = torch.tensor(values, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        maxima: list[int] = flags.tolist()
        return maxima


def _has_ended(trainer: Trainer) -> bool:
    """Whether no further step follows, for example because a metric did not improve."""
    return trainer.should_stop and trainer.fit_loop._can_stop_early
