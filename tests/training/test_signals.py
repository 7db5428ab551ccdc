"""Handlers of signals, without a training."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment

from condseg.training.signals import STOPPING, Signals
from condseg.training.slurm import requeue, requeue_signal


@pytest.fixture
def signals() -> Iterator[Signals]:
    signals = Signals()
    yield signals
    signals.restore()


def test_each_is_noted_and_the_handlers_are_restored(signals: Signals) -> None:
    before = [signal.getsignal(number) for number in (*STOPPING, signal.SIGUSR2)]
    signals.install(signal.SIGUSR2)
    for number in (*STOPPING, signal.SIGUSR2):
        os.kill(os.getpid(), number)
        assert signals.received == number
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    signals.restore()
    assert [signal.getsignal(number) for number in (*STOPPING, signal.SIGUSR2)] == before


def test_an_ignored_signal_stays_ignored(signals: Signals) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        signals.install()
        os.kill(os.getpid(), signal.SIGHUP)
        assert signals.received == 0
    finally:
        signals.restore()
        signal.signal(signal.SIGHUP, before)


def test_a_worker_that_ends_in_a_step_does_not_interrupt_it(signals: Signals) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")

    before = signal.signal(signal.SIGCHLD, fail)
    try:
        signals.watch_workers()
        signals.deferred = True
        os.kill(os.getpid(), signal.SIGCHLD)
        assert isinstance(signals.worker_error(), RuntimeError)
        assert signals.worker_error() is None
        signals.deferred = False
        with pytest.raises(RuntimeError, match="Killed"):
            os.kill(os.getpid(), signal.SIGCHLD)
    finally:
        signals.restore()
        signal.signal(signal.SIGCHLD, before)


def trainer(environment: Any) -> Trainer:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer._accelerator_connector.cluster_environment = environment
    return trainer


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that the ``scontrol`` on PATH writes its arguments to."""
    command, calls = tmp_path / "scontrol", tmp_path / "calls"
    command.write_text(f'#!/bin/sh\necho "$@" >> {calls}\ntest "$2" != 0\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_JOB_ID", "71")
    return calls


def test_requeues_a_job_or_a_task_of_an_array(
    scontrol: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requeue(trainer(SLURMEnvironment()), signal.SIGUSR1)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    requeue(trainer(SLURMEnvironment(requeue_signal=signal.SIGUSR2)), signal.SIGUSR2)
    assert scontrol.read_text().splitlines() == ["requeue 71", "requeue 70_3"]


def test_requeues_only_when_asked(scontrol: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requeue(trainer(SLURMEnvironment()), signal.SIGTERM)
    requeue(trainer(SLURMEnvironment(auto_requeue=False)), signal.SIGUSR1)
    requeue(trainer(LightningEnvironment()), signal.SIGUSR1)
    monkeypatch.setattr(Trainer, "is_global_zero", False)
    requeue(trainer(SLURMEnvironment()), signal.SIGUSR1)
    assert not scontrol.exists()
    assert requeue_signal(trainer(SLURMEnvironment(requeue_signal=signal.SIGUSR2))) == [
        signal.SIGUSR2
    ]


def test_a_job_that_cannot_be_requeued(scontrol: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "0")
    with pytest.warns(match=r"scontrol requeue 0 failed \(.*\); requeue it yourself"):
        requeue(trainer(SLURMEnvironment()), signal.SIGUSR1)
