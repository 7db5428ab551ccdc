"""Processes that are killed or stopped end a training in one line, with a checkpoint."""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from support import tiny
from tensorboard.summary.writer.event_file_writer import _AsyncWriter

from condseg.cli.train import CommandLine
from condseg.cli.trainer import trainer_errors
from condseg.data.dataset import CocoDataset
from condseg.training.failures import explain, quiet_writers
from condseg.zoo.checkpoint import load


class SignalToWorkers(Callback):
    """Sends the loader's workers a signal in step 2, or after it, before the next is loaded."""

    def __init__(self, number: int, in_step: bool) -> None:
        self.number, self.in_step = number, in_step

    def send(self, trainer: Trainer) -> None:
        if trainer.global_step == 2 - self.in_step:
            for process in multiprocessing.active_children():
                assert process.pid is not None
                os.kill(process.pid, self.number)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if self.in_step:
            self.send(trainer)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if not self.in_step:
            self.send(trainer)


# Torch learns of the signal only if the loop meets SIGCHLD before the broken connection.
LOST_WORKER = r"a process that loads images (was killed \(Killed\)|ended), .* --data.workers"


@pytest.mark.parametrize(
    ("number", "in_step", "message"),
    [
        (signal.SIGKILL, True, LOST_WORKER),
        (signal.SIGKILL, False, LOST_WORKER),
        (signal.SIGSTOP, True, r"no batch was loaded within 2 s \(--loader_timeout\.seconds\)"),
    ],
)
def test_a_worker(tmp_path: Path, number: int, in_step: bool, message: str) -> None:
    data = tiny.make_set(tmp_path / "data", train=24)  # more batches than the workers fetch ahead
    args = ("--data.workers=1", "--loader_timeout.seconds=2", "--progress.refresh_rate=0")
    cli = CommandLine(tiny.arguments(data, tmp_path, *args))
    cli.trainer.callbacks.insert(0, SignalToWorkers(number, in_step))  # type: ignore[attr-defined]
    with pytest.raises((ValueError, TimeoutError), match=message):
        cli.fit()
    last = cli.run_folder / "checkpoints/last.ckpt"
    steps = load(last)["global_step"]
    assert steps == cli.trainer.global_step >= 2
    assert len(tiny.losses(tmp_path)) == steps
    for process in multiprocessing.active_children():
        process.join(10)
        assert not process.is_alive()


class LateEnd(Callback):
    """The loader fails after step 2; only while the checkpoint is written is the end signalled."""

    def on_save_checkpoint(self, *_: Any) -> None:
        os.kill(os.getpid(), signal.SIGCHLD)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_a_worker_whose_end_is_signalled_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")

    read, keys = CocoDataset.__getitem__, []

    def item(self: CocoDataset, key: Any) -> Any:
        keys.append(key)
        if len(keys) > 8:
            raise ConnectionResetError(104, "Connection reset by peer")
        return read(self, key)

    monkeypatch.setattr(CocoDataset, "__getitem__", item)
    before = signal.signal(signal.SIGCHLD, fail)
    try:
        data = tiny.make_set(tmp_path / "data")
        cli = CommandLine(tiny.arguments(data, tmp_path, "--progress.refresh_rate=0"))
        cli.trainer.callbacks.insert(0, LateEnd())  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match="a process that loads images ended"):
            cli.fit()
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert load(cli.run_folder / "checkpoints/last.ckpt")["global_step"] == 2


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            RuntimeError("[gloo/tcp/pair.cc:9] Connection closed by peer"),
            "another process .* ended",
        ),
        (torch.distributed.DistBackendError("NCCL"), r"another process .*\(--process_timeout\): N"),
        (OSError(errno.ENOSPC, "No space left", "metrics.csv"), "disk full: metrics.csv cannot"),
        (RuntimeError("DataLoader worker (pid(s) 5) exited unexpectedly"), "loads images ended, "),
        (RuntimeError("a bug"), None),
        (OSError("last.ckpt: disk full; 3 bytes needed"), None),
    ],
)
def test_explanations(error: Exception, message: str | None) -> None:
    explanation = explain(error)
    if message is None:
        assert explanation is None
    else:
        assert explanation is not None
        assert re.search(message, explanation)


def test_a_connection_to_a_worker_that_was_killed() -> None:
    """Only in torch's loader: a logger may have connections, too."""
    for file, known in (("/site-packages/torch/utils/data/dataloader.py", True), ("x.py", False)):
        code = compile("raise ConnectionResetError(104, 'reset')", file, "exec")
        with pytest.raises(ConnectionResetError) as error:
            exec(code)
        assert (explain(error.value) is not None) == known


class FullDisk:
    def write(self, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left")

    flush = close = write


def test_the_thread_of_tensorboard_leaves_its_error_to_the_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An error of another thread, or another error of this one, is printed as before."""
    printed = list[threading.ExceptHookArgs]()
    monkeypatch.setattr("threading.excepthook", printed.append)
    with quiet_writers():
        writer = _AsyncWriter(FullDisk())
        writer.write(b"row")
        writer._worker.join()
        assert not printed
        other = threading.Thread(target=FullDisk().write, args=[b""])
        other.start()
        other.join()
        assert [args.thread for args in printed] == [other]
    with pytest.raises(OSError, match="No space"):
        writer.write(b"row")
    assert threading.excepthook == printed.append


def test_a_metric_that_early_stopping_does_not_find() -> None:
    """Its name is one that a training logs, but at another moment."""
    stopping = EarlyStopping("val/box_AP")
    with pytest.raises(ValueError, match=r"^trainer: Early .* `val/box_AP`"), trainer_errors():
        stopping._validate_condition_metric({"train/loss": torch.zeros(())})
    with pytest.raises(RuntimeError, match="a bug"), trainer_errors():
        raise RuntimeError("a bug")
