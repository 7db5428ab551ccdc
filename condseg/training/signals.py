"""Signals that end a training, and the loader's workers that end by themselves."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

STOPPING = tuple(
    int(getattr(signal, name))
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)  # Windows has the first two
)
"""Ctrl-C; kill, timeout and clusters; a closed terminal; SLURM before its time limit."""


class Stopped(SystemExit):
    """Raised when a signal has ended the training and a checkpoint is written.

    Attributes:
        number: the signal; the exit code is 128 + number, as in a shell.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


class Signals:
    """Handlers that note a signal, so that the training ends between two steps.

    A second Ctrl-C raises ``KeyboardInterrupt`` at once. A signal that was ignored before, as
    ``nohup`` does, stays ignored.

    Attributes:
        received: number of the received signal, or 0.
        deferred: whether the end of a worker is only noted, as weights may be half updated, or a
            checkpoint be half written.
    """

    def __init__(self) -> None:
        self.received = 0
        self.deferred = False
        self._child_ended = False
        self._stopping = set[int](STOPPING)
        self._previous: dict[int, Any] = {}

    def install(self, *more: int) -> None:
        """Handles the signals that are to end the training, and from now on these ``more``."""
        self._stopping.update(more)
        for number in self._stopping:
            if self._previous.get(number, signal.getsignal(number)) is not signal.SIG_IGN:
                self._handle(number, self._stop)

    def watch_workers(self) -> None:
        """Handles ended workers; to be called after torch has installed its own handler."""
        if hasattr(signal, "SIGCHLD"):
            self._handle(signal.SIGCHLD, self._note_child)

    def restore(self) -> None:
        """Installs the handlers from before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def worker_error(self) -> RuntimeError | None:
        """The error of a worker that ended during the step."""
        if self._child_ended:
            self._child_ended = False
            try:
                self._raise_if_worker_failed()
            except RuntimeError as error:
                return error
        return None

    def _handle(self, number: int, handler: Callable[[int, FrameType | None], None]) -> None:
        if threading.current_thread() is threading.main_thread():
            self._previous.setdefault(number, signal.signal(number, handler))

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _note_child(self, number: int, frame: FrameType | None) -> None:
        if self.deferred:
            self._child_ended = True
        else:
            self._raise_if_worker_failed()

    def _raise_if_worker_failed(self) -> None:
        torch_handler = self._previous[signal.SIGCHLD]
        if callable(torch_handler):
            torch_handler(signal.SIGCHLD, None)
