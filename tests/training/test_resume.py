"""A run that is broken off and goes on is the run without the break."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from support import tiny

from condseg.cli.train import CommandLine
from condseg.data.dataset import CocoDataset
from condseg.training.callbacks import LastCheckpoint, Stopped
from condseg.zoo.checkpoint import load

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")

# Random choice of proposals and a moving average: both must survive the break.
LONG = (
    "--trainer.max_steps=9",
    "--trainer.val_check_interval=3",
    "--model.criterion.max_proposals=6",
    "--trainer.callbacks+=condseg.training.callbacks.ExponentialAveraging",
    "--progress.refresh_rate=0",
)


class Signal(Callback):
    """Sends this process a signal in the given step, or in the validation after it."""

    def __init__(self, number: int, step: int, validating: bool) -> None:
        self.number, self.step, self.validating = number, step, validating

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if not self.validating and trainer.global_step == self.step - 1:
            os.kill(os.getpid(), self.number)

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if self.validating and trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


def run(data: Path, runs: Path, *more: str, end: Signal | None = None) -> None:
    cli = CommandLine(tiny.arguments(data, runs, *LONG, *more))
    if end is not None:
        cli.trainer.callbacks.insert(0, end)  # type: ignore[attr-defined]
    cli.fit()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The data, and the runs' folder of a training without a break."""
    folder = tmp_path_factory.mktemp("unbroken")
    data = tiny.make_set(folder / "data")
    run(data, folder / "runs")
    return data, folder / "runs"


def start(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(tiny.REPOSITORY / "tools" / "train.py"), *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=tiny.environment(),
        start_new_session=True,
    )


def wait_for_steps(runs: Path, steps: int, process: subprocess.Popen[str]) -> None:
    """Until metrics.csv has that many training steps."""
    for _ in range(6000):  # five minutes: other processes may be at work
        try:
            if len(tiny.losses(runs)) >= steps:
                return
        except (FileNotFoundError, KeyError):
            pass
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.05)
    raise AssertionError("the training makes no steps")


def same_end(data: Path, runs: Path, whole: Path, *more: str) -> None:
    """Goes on with ``--ckpt_path last`` and compares every number with the unbroken run."""
    run(data, runs, "--ckpt_path=last", *more)
    assert [path.name for path in (runs / "tiny").iterdir()] == ["version_0"]
    one, other = (r / "tiny/version_0" for r in (runs, whole))
    assert (one / "metrics.csv").read_text() == (other / "metrics.csv").read_text()
    a, b = (load(r / "checkpoints/last.ckpt") for r in (one, other))
    for key in ("state_dict", "current_model_state"):
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("step", "validating"),
    [(1, False), (2, False), (3, False), (3, True), (5, False), (9, False), (9, True)],
    ids=[
        "first step",
        "last step of an epoch",
        "step before a validation",
        "validation",
        "amid an epoch",
        "last step",
        "last validation",
    ],
)
def test_a_signal_leaves_a_checkpoint_to_go_on_from(
    unbroken: tuple[Path, Path], tmp_path: Path, step: int, validating: bool
) -> None:
    data, whole = unbroken
    number = signal.SIGINT if step % 2 else signal.SIGTERM
    with pytest.raises(Stopped) as stopped:
        run(data, tmp_path, end=Signal(number, step, validating))
    assert stopped.value.code == 128 + number
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    same_end(data, tmp_path, whole)


def test_a_finished_run_goes_on_with_more_steps(
    unbroken: tuple[Path, Path], tmp_path: Path
) -> None:
    data, whole = unbroken
    run(data, tmp_path, "--trainer.max_steps=6")
    run(data, tmp_path, "--ckpt_path=last")
    rows = [
        [
            row.split(",")[:2]
            for row in (runs / "tiny/version_0/metrics.csv").read_text().splitlines()
        ]
        for runs in (tmp_path, whole)
    ]
    assert rows[0] == rows[1]


def test_the_warm_up_of_learning_from_boxes_goes_on(
    unbroken: tuple[Path, Path], tmp_path: Path
) -> None:
    data, more = (
        unbroken[0],
        ("--data.supervision=boxes", "--model.criterion.pairwise_warmup_steps=8"),
    )
    run(data, tmp_path / "whole", *more)
    with pytest.raises(Stopped):
        run(data, tmp_path / "broken", *more, end=Signal(signal.SIGTERM, 5, False))
    same_end(data, tmp_path / "broken", tmp_path / "whole", *more)
    state = load(tmp_path / "broken/tiny/version_0/checkpoints/last.ckpt")["state_dict"]
    assert state["criterion.boxinst.steps"] == 9


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_of_processes(
    unbroken: tuple[Path, Path], tmp_path: Path, number: signal.Signals
) -> None:
    """A terminal sends Ctrl-C to the loader's workers as well, ``timeout`` its SIGTERM."""
    data, whole = unbroken
    process = start(tiny.arguments(data, tmp_path, *LONG, "--data.workers=1"))
    wait_for_steps(tmp_path, 2, process)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    assert "Traceback" not in errors
    assert "--config tiny.yaml --ckpt_path last" in errors
    same_end(data, tmp_path, whole)


@pytest.mark.parametrize("error", [RuntimeError("a worker exited"), ConnectionResetError(104)])
def test_a_signal_that_takes_the_workers_too(
    error: Exception, unbroken: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the loader raises while the next batch is waited for is not the user's mistake."""
    data, whole = unbroken
    read, taken = CocoDataset.__getitem__, []

    def item(self: CocoDataset, key: Any) -> Any:
        taken.append(key)
        if len(taken) == 16:
            os.kill(os.getpid(), signal.SIGTERM)
            raise error
        return read(self, key)

    monkeypatch.setattr(CocoDataset, "__getitem__", item)
    with pytest.raises(Stopped) as stopped:
        run(data, tmp_path, "--last_checkpoint.every_n_steps=100")
    monkeypatch.setattr(CocoDataset, "__getitem__", read)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert (tmp_path / "tiny/version_0/checkpoints/last.ckpt").is_file()
    same_end(data, tmp_path, whole)


def test_kill_and_go_on(unbroken: tuple[Path, Path], tmp_path: Path) -> None:
    data, whole = unbroken
    process = start(tiny.arguments(data, tmp_path, *LONG, "--last_checkpoint.every_n_steps=2"))
    wait_for_steps(tmp_path, 5, process)
    process.kill()
    process.communicate(timeout=60)
    same_end(data, tmp_path, whole)


def test_last_without_a_run(unbroken: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--ckpt_path last: no run in .* has one; start with"):
        run(unbroken[0], tmp_path, "--ckpt_path=last")


def test_checkpoint_of_another_network(unbroken: tuple[Path, Path], tmp_path: Path) -> None:
    data, whole = unbroken
    other = whole / "tiny/version_0/checkpoints/last.ckpt"
    message = r"has model.network.tower_convs 1, this configuration 2"
    with pytest.raises(ValueError, match=message):
        run(data, tmp_path, f"--ckpt_path={other}", "--model.network.tower_convs=2")


def test_steps_between_writings() -> None:
    with pytest.raises(ValueError, match="every_n_steps is 0; 1 or more"):
        LastCheckpoint(0)
