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
    metrics = {key: value for key, value in one.items() if key.startswith("val/")}
    assert len(metrics) >= 24
    assert all(metrics.values())
    assert {key: two[key] for key in metrics} == metrics


def test_one_run_folder(one_and_two: tuple[Path, Path]) -> None:
    one, two = (
        {path.name for path in run.rglob("*.*") if "events" not in path.name} for run in one_and_two
    )
    assert {n for n in two if ".jpg" not in n} == {n for n in one if ".jpg" not in n}
    assert [path.name for path in one_and_two[1].parent.iterdir()] == ["version_0"]


def test_a_signal_to_one_process_ends_both(tmp_path: Path) -> None:
    data = tiny.make_set(tmp_path / "data")
    args = tiny.arguments(data, tmp_path, *ARGS)
    processes = start_two([arg for arg in args if "max_steps" not in arg])
    try:
        for _ in range(1200):
            if (tmp_path / "tiny/version_0/metrics.csv").is_file():
                break
            time.sleep(0.05)
        processes[1].send_signal(signal.SIGTERM)
        errors = [process.communicate(timeout=60)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [128 + signal.SIGTERM] * 2, errors
    assert "Traceback" not in "".join(errors)
    steps = load(tmp_path / "tiny/version_0/checkpoints/last.ckpt")["global_step"]
    assert f"is after {steps} steps" in errors[0]
