"""An end to waiting for a batch that does not come."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback


class LoaderTimeout(Callback):
    """Ends the training if a batch is not loaded in time; the last step is saved before.

    torch's own timeout does not notice a stopped process that has to hand over the memory of a
    batch. This one is an alarm of the system, which interrupts the main thread wherever it waits.
    Windows has no alarms; there, nothing is ended.

    Args:
        seconds: from the end of a step to the start of the next; 0 waits for ever.
    """

    def __init__(self, seconds: float = 300.0) -> None:
        if seconds < 0:
            raise ValueError(f"seconds is {seconds}; 0 or more is allowed")
        self.seconds = seconds
        self._previous: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        in_main_thread = threading.current_thread() is threading.main_thread()
        if stage == "fit" and in_main_thread and hasattr(signal, "SIGALRM"):
            self._previous = signal.signal(signal.SIGALRM, self._on_alarm)

    def _start(self, *_: Any, **__: Any) -> None:
        if self._previous is not None:
            signal.setitimer(signal.ITIMER_REAL, self.seconds)

    def _stop(self, *_: Any, **__: Any) -> None:
        if self._previous is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)

    on_train_start = on_train_batch_end = on_validation_end = _start
    on_validation_epoch_start = on_validation_batch_end = _start
    on_train_batch_start = on_validation_batch_start = _stop
    on_validation_epoch_end = on_train_end = _stop

    def on_exception(self, *_: Any) -> None:
        self._stop()
        self._restore()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._restore()

    def _restore(self) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGALRM, self._previous)
            self._previous = None

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        raise TimeoutError(
            f"no batch was loaded within {self.seconds:g} s (--loader_timeout.seconds): a process "
            "that loads images is stopped, or the disk does not answer"
        )
