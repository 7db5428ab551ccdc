"""Two processes compute what one computes of the same batches: losses, weights and AP."""

from __future__ import annotations

import csv
import signal
import socket
import time
from pathlib import Path
from subprocess import Popen

import pytest
import torch
from support import tiny

from condseg.zoo.checkpoint import load

pytestmark = pytest.mark.tool
# ODConv has batch norms with one value per image; two processes share five validation images; the
# training images have 0 to 2 objects, so some batches of a process have none.
ARGS = (
    "--trainer.max_steps=5",
    "--trainer.val_check_interval=5",
    "--model.network.backbone.conv=condseg.layers.ODConv2d",
    "--model.mask_loss.max_proposals=null",
    "--data.skip_empty=false",
    "--progress.refresh_rate=0",
)


def start_two(args: list[str]) -> list[Popen[str]]:
    """Two processes with the variables that torchrun sets."""
    with socket.socket() as connection:
        connection.bind(("127.0.0.1", 0))
        port = str(connection.getsockname()[1])
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    variables |= {"LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0"}
    args = [*args, "--trainer.strategy=ddp", "--trainer.devices=2"]
    ranks = ("0", "1")
    return [tiny.start(args, **variables, RANK=rank, LOCAL_RANK=rank) for rank in ranks]


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The run folders of one process and of two."""
    folder = tmp_path_factory.mktemp("ddp")
    data = tiny.make_set(folder / "data")
    one, two = folder / "one", folder / "two"
    processes = [tiny.start(tiny.arguments(data, one, *ARGS))]
    processes += start_two(tiny.arguments(data, two, *ARGS))
    for process in processes:
        _, errors = process.communicate(timeout=180)
        assert process.returncode == 0, errors
    return one / "tiny/version_0", two / "tiny/version_0"


def test_losses(one_and_two: tuple[Path, Path]) -> None:
    one, two = (tiny.losses(run.parents[1]) for run in one_and_two)
    assert len(one) == len(two) == 5
    for step, losses in one.items():
        assert two[step] == pytest.approx(losses, rel=2e-5), f"step {step}"


def test_weights_and_statistics(one_and_two: tuple[Path, Path]) -> None:
    one, two = (load(run / "checkpoints/last.ckpt")["state_dict"] for run in one_and_two)
    assert list(one) == list(two)
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)


def test_average_precision(one_and_two: tuple[Path, Path]) -> None:
    one, two = (
        list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))[-1]
        for run in one_and_two
    )
    metrics = {key: value for key, value in one.items() if key.startswith("val")}
    losses = {key: float(metrics.pop(key)) for key in list(metrics) if "loss" in key}
    assert len(metrics) >= 28
    assert all(metrics.values())
    assert {key: two[key] for key in metrics} == metrics
    # The batches of two processes have other images, so that their means differ a little.
    assert len(losses) == 5
    assert {key: float(two[key]) for key in losses} == pytest.approx(losses, rel=0.2)


def test_one_run_folder(one_and_two: tuple[Path, Path]) -> None:
    one, two = (
        {path.name for path in run.rglob("*.*") if "events" not in path.name} for run in one_and_two
    )
    assert {n for n in two if ".jpg" not in n} == {n for n in one if ".jpg" not in n}
    assert [path.name for path in one_and_two[1].parent.iterdir()] == ["version_0"]


def start_two_and_wait(tmp_path: Path, *more: str) -> list[Popen[str]]:
    """Two processes of an endless training that have saved a step."""
    more = ("--last_checkpoint.every_n_steps=1", *more)
    args = tiny.arguments(tiny.make_set(tmp_path / "data"), tmp_path, *ARGS, *more)
    processes = start_two([arg for arg in args if "max_steps" not in arg])
    for _ in range(6000):  # five minutes, for a busy machine
        if (tmp_path / "tiny/version_0/checkpoints/last.ckpt").is_file():
            return processes
        time.sleep(0.05)
    raise AssertionError("no step in five minutes")


def test_a_signal_to_one_process_ends_both(tmp_path: Path) -> None:
    processes = start_two_and_wait(tmp_path)
    try:
        processes[1].send_signal(signal.SIGTERM)
        errors = [process.communicate(timeout=60)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [128 + signal.SIGTERM] * 2, errors
    assert "Traceback" not in "".join(errors)
    steps = load(tmp_path / "tiny/version_0/checkpoints/last.ckpt")["global_step"]
    assert f"is after {steps} steps" in errors[0]


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)]
)
def test_a_killed_or_stopped_process_ends_the_other(tmp_path: Path, number: int) -> None:
    processes = start_two_and_wait(tmp_path, "--process_timeout=40")
    try:
        processes[1].send_signal(number)
        _, errors = processes[0].communicate(timeout=180)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert processes[0].returncode == 2, errors
    assert "Traceback" not in errors
    lines = errors.splitlines()
    assert lines[-1].startswith("error: another process of this training ended, or did not answer")
    steps = load(tmp_path / "tiny/version_0/checkpoints/last.ckpt")["global_step"]
    assert f"is after {steps} steps" in errors
