"""Errors of other processes and of the system during a training, in one line each."""

from __future__ import annotations

import errno
import multiprocessing
import re
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


def explain(error: BaseException) -> str | None:
    """What has failed and what helps; None for other errors, and for those that say it already."""
    message = " ".join(str(error).split())
    if message.startswith("Caught "):  # torch's text for an exception in a worker
        return None
    lost = isinstance(error, (ConnectionError, EOFError)) and _in_loader(error)
    if lost or "DataLoader worker" in message:
        cause = re.search(r"killed by signal: (\w[\w ]*)", message)
        how = f"was killed ({cause[1].strip()})" if cause else "ended"
        return (
            f"a process that loads images {how}, mostly because memory or shared memory is "
            "exhausted; a lower --data.workers helps"
        )
    if isinstance(error, torch.distributed.DistError) or "gloo" in message:
        return (
            "another process of this training ended, or did not answer in time "
            f"(--process_timeout): {message[:200]}"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"disk full: {error.filename or 'a log of the run'} cannot be written"
    return None


def _in_loader(error: BaseException) -> bool:
    files = (frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__))
    return any("torch/utils/data" in Path(file).as_posix() for file in files)


@contextmanager
def quiet_writers() -> Iterator[None]:
    """TensorBoard's thread does not print the traceback of an error that it cannot write.

    It raises the error in the main thread as well.
    """
    previous = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        in_tensorboard = "tensorboard" in type(args.thread).__module__
        if not (in_tensorboard and isinstance(args.exc_value, OSError)):
            previous(args)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = previous


def kill_workers() -> None:
    """Ends the processes that load images, also stopped ones, for which Python would wait."""
    processes = multiprocessing.active_children()
    in_main_thread = threading.current_thread() is threading.main_thread()
    if processes and in_main_thread and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, lambda *_: None)  # their end is no error
    for process in processes:
        process.kill()
    for process in processes:
        process.join()
