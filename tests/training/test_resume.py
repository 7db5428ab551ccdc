"""An interrupted and resumed run equals the uninterrupted one, number by number."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from support import tiny

from condseg.cli.train import CommandLine, main
from condseg.data.dataset import CocoDataset
from condseg.training.callbacks import LastCheckpoint
from condseg.training.runs import lock_run
from condseg.training.signals import Stopped
from condseg.zoo.checkpoint import load

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")

# With a random choice of proposals and a moving average, both of which must be restored. An epoch
# has two steps.
ARGS = (
    "--trainer.max_steps=6",
    "--trainer.val_check_interval=3",
    "--model.mask_loss.max_proposals=6",
    "--trainer.callbacks+=condseg.training.callbacks.ExponentialAveraging",
    "--progress.refresh_rate=0",
    "--validation_images.count=0",
)
LONGER = "--trainer.max_steps=15"


class Signal(Callback):
    """Sends this process a signal in the given step, or in the validation after it."""

    def __init__(self, number: int, step: int, validating: bool = False) -> None:
        self.number, self.step, self.validating = number, step, validating

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if not self.validating and trainer.global_step == self.step - 1:
            os.kill(os.getpid(), self.number)

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if self.validating and trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


def run(data: Path, runs: Path, *args: str, interrupt: Signal | None = None) -> None:
    cli = CommandLine(tiny.arguments(data, runs, *ARGS, *args))
    if interrupt is None:
        cli.fit()
        return
    cli.trainer.callbacks.insert(0, interrupt)  # type: ignore[attr-defined]
    with pytest.raises(Stopped) as stopped:
        cli.fit()
    assert stopped.value.code == 128 + interrupt.number
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The data set, and the folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    data = tiny.make_set(folder / "data")
    run(data, folder / "runs")
    return data, folder / "runs"


def resume_and_compare(data: Path, runs: Path, whole: Path, *args: str) -> None:
    """Resumes with ``--ckpt_path last`` and compares all numbers with the uninterrupted run."""
    run(data, runs, "--ckpt_path=last", *args)
    assert [path.name for path in (runs / "tiny").iterdir()] == ["version_0"]
    one, other = (r / "tiny/version_0" for r in (runs, whole))
    assert (one / "metrics.csv").read_text() == (other / "metrics.csv").read_text()
    a, b = (load(r / "checkpoints/last.ckpt") for r in (one, other))
    for key in ("state_dict", "current_model_state"):
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=0)


STOPS = {
    "first step": Signal(signal.SIGINT, 1),
    "last step of an epoch": Signal(signal.SIGTERM, 2),
    "step before a validation": Signal(signal.SIGHUP, 3),
    "validation": Signal(signal.SIGTERM, 3, validating=True),
    "first step of an epoch": Signal(signal.SIGUSR1, 5),
    "last step": Signal(signal.SIGTERM, 6),
    "last validation": Signal(signal.SIGUSR1, 6, validating=True),
}


@pytest.mark.parametrize("stop", STOPS)
def test_after_a_signal(uninterrupted: tuple[Path, Path], tmp_path: Path, stop: str) -> None:
    data, whole = uninterrupted
    run(data, tmp_path, interrupt=STOPS[stop])
    resume_and_compare(data, tmp_path, whole)


def test_slurm_requeues_into_the_same_run(
    uninterrupted: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, whole = uninterrupted
    scontrol = tmp_path / "bin/scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(scontrol.parent), prepend=os.pathsep)
    job = {"JOB_ID": "71", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    same_command = "--ckpt_path=auto"
    run(data, tmp_path / "runs", same_command, interrupt=Signal(signal.SIGUSR1, 4))
    assert (tmp_path / "calls").read_text() == "requeue 71\n"
    resume_and_compare(data, tmp_path / "runs", whole, same_command)
    assert not list(tmp_path.rglob("hpc_ckpt*"))


@pytest.mark.parametrize("error", [RuntimeError("a worker exited"), ConnectionResetError(104)])
def test_after_a_signal_that_also_ended_the_workers(
    error: Exception,
    uninterrupted: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The loader's error while it waits for the next batch is not the user's error."""
    data, whole = uninterrupted
    read, keys = CocoDataset.__getitem__, []

    def item(self: CocoDataset, key: Any) -> Any:
        keys.append(key)
        if len(keys) == 16:
            os.kill(os.getpid(), signal.SIGTERM)
            raise error
        return read(self, key)

    monkeypatch.setattr(CocoDataset, "__getitem__", item)
    with pytest.raises(Stopped) as stopped:
        run(data, tmp_path, "--last_checkpoint.every_n_steps=100")
    monkeypatch.setattr(CocoDataset, "__getitem__", read)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert (tmp_path / "tiny/version_0/checkpoints/last.ckpt").is_file()
    resume_and_compare(data, tmp_path, whole)


def test_a_finished_run_continues_with_more_steps(
    uninterrupted: tuple[Path, Path], tmp_path: Path
) -> None:
    data, whole = uninterrupted
    run(data, tmp_path, "--trainer.max_steps=3")
    run(data, tmp_path, "--ckpt_path=last")
    one, other = (
        (runs / "tiny/version_0/metrics.csv").read_text().splitlines() for runs in (tmp_path, whole)
    )
    assert [row.split(",")[:2] for row in one] == [row.split(",")[:2] for row in other]


@pytest.mark.parametrize("at_epoch_end", [False, True])
def test_after_early_stopping_the_same_command_trains_nothing(
    at_epoch_end: bool,
    uninterrupted: tuple[Path, Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    data, _ = uninterrupted
    stopping = "--trainer.callbacks.init_args"
    args = (
        *("--trainer.val_check_interval=1", "--ckpt_path=auto", LONGER),
        "--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStopping",
        f"{stopping}.monitor={'train/loss' if at_epoch_end else 'val/box_AP'}",
        f"{stopping}.check_on_train_epoch_end={at_epoch_end}",
        *(f"{stopping}.patience=1", f"{stopping}.min_delta=1000"),
    )
    run(data, tmp_path, *args)
    last = tmp_path / "tiny/version_0/checkpoints/last.ckpt"
    before, steps = last.read_bytes(), load(last)["global_step"]
    assert steps == (4 if at_epoch_end else 2)  # the second check without a better result
    run(data, tmp_path, *args)
    assert f"{last} is at the end of its training of {steps} steps" in caplog.text
    assert last.read_bytes() == before
    run(data, tmp_path, f"--ckpt_path={last}")
    assert load(last)["global_step"] > steps


@pytest.mark.parametrize("ckpt_path", ["last", "auto"])
def test_a_run_that_another_process_trains(
    ckpt_path: str,
    uninterrupted: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, _ = uninterrupted
    run(data, tmp_path, interrupt=Signal(signal.SIGTERM, 2))
    with lock_run(tmp_path / "tiny/version_0"):
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        args = tiny.arguments(data, tmp_path, *ARGS, f"--ckpt_path={ckpt_path}")
        message = tiny.error(main, args, capsys)
        assert "version_0: another process still trains in it" in message
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_the_last_checkpoint_has_weights_and_their_average(
    uninterrupted: tuple[Path, Path], tmp_path: Path
) -> None:
    """Also without a validation after the last step."""
    data, _ = uninterrupted
    run(data, tmp_path, "--trainer.max_steps=3", "--trainer.limit_val_batches=0")
    content = load(tmp_path / "tiny/version_0/checkpoints/last.ckpt")
    name = "network.head.class_logits.weight"
    assert not torch.equal(content["state_dict"][name], content["current_model_state"][name])


def test_the_warmup_of_boxinst_is_restored(
    uninterrupted: tuple[Path, Path], tmp_path: Path
) -> None:
    data, _ = uninterrupted
    args = ("--data.supervision=boxes", "--model.mask_loss.pairwise_warmup_steps=8")
    run(data, tmp_path / "whole", *args)
    run(data, tmp_path / "resumed", *args, interrupt=Signal(signal.SIGTERM, 5))
    resume_and_compare(data, tmp_path / "resumed", tmp_path / "whole", *args)
    state = load(tmp_path / "resumed/tiny/version_0/checkpoints/last.ckpt")["state_dict"]
    assert [int(state[name]) for name in state if name.endswith("boxinst.steps")] == [6]


def test_checkpoint_of_another_network(uninterrupted: tuple[Path, Path], tmp_path: Path) -> None:
    data, whole = uninterrupted
    other = whole / "tiny/version_0/checkpoints/last.ckpt"
    with pytest.raises(ValueError, match=r"model.network.channels 64, this configuration 96"):
        run(data, tmp_path, f"--ckpt_path={other}", "--model.network.channels=96")


@pytest.fixture(scope="module")
def longer(uninterrupted: tuple[Path, Path]) -> tuple[Path, Path]:
    """As ``uninterrupted``, with enough steps that a process is still training when it is ended."""
    data, runs = uninterrupted
    run(data, runs / "longer", LONGER)
    return data, runs / "longer"


def wait_for_steps(runs: Path, steps: int, process: Popen[str]) -> None:
    """Waits until metrics.csv has that many training steps."""
    for _ in range(6000):  # five minutes, for a busy machine
        try:
            if len(tiny.losses(runs)) >= steps:
                return
        except (FileNotFoundError, KeyError):
            pass
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.05)
    raise AssertionError(f"fewer than {steps} steps in five minutes")


@pytest.mark.tool
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_after_a_signal_to_the_process_group(
    longer: tuple[Path, Path], tmp_path: Path, number: signal.Signals
) -> None:
    """A terminal sends Ctrl-C to the loader's workers as well, ``timeout`` its SIGTERM."""
    data, whole = longer
    process = tiny.start(tiny.arguments(data, tmp_path, *ARGS, LONGER, "--data.workers=1"))
    wait_for_steps(tmp_path, 2, process)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    assert "Traceback" not in errors
    last = tmp_path / "tiny/version_0/checkpoints/last.ckpt"
    assert f"train.py --ckpt_path {last}\n" in errors
    resume_and_compare(data, tmp_path, whole, LONGER)


@pytest.mark.tool
def test_after_kill(longer: tuple[Path, Path], tmp_path: Path) -> None:
    data, whole = longer
    often = "--last_checkpoint.every_n_steps=2"
    process = tiny.start(tiny.arguments(data, tmp_path, *ARGS, LONGER, often))
    wait_for_steps(tmp_path, 3, process)
    process.kill()
    process.communicate(timeout=60)
    resume_and_compare(data, tmp_path, whole, LONGER)


def test_a_checkpoint_comes_after_the_losses_of_its_step(
    uninterrupted: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process killed behind it would lose these rows of metrics.csv."""
    data, whole = uninterrupted
    save, steps = LastCheckpoint._save, []

    def checked(self: LastCheckpoint, trainer: Trainer) -> None:
        steps.append(trainer.global_step)
        assert list(tiny.losses(tmp_path)) == list(range(trainer.global_step))
        save(self, trainer)

    monkeypatch.setattr(LastCheckpoint, "_save", checked)
    run(data, tmp_path, "--last_checkpoint.every_n_steps=1")
    assert set(steps) == set(range(1, 7))
    one, other = (runs / "tiny/version_0/metrics.csv" for runs in (tmp_path, whole))
    assert one.read_text() == other.read_text()
