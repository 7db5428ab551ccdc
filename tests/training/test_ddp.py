"""Two processes are one: the same losses of the same batches, the same AP to the last digit."""

from __future__ import annotations

import csv
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support import tiny

from condseg.zoo.checkpoint import load

# ODConv has batch norms on one value a picture; five validation pictures make uneven shares; the
# training pictures have no object, one or two, so now and then a process has none at all.
WORDS = (
    "--trainer.max_steps=5",
    "--trainer.val_check_interval=5",
    "--model.network.backbone.conv=condseg.layers.ODConv2d",
    "--model.criterion.max_proposals=null",
    "--data.skip_empty=false",
    "--progress.refresh_rate=0",
)


def free_port() -> int:
    with socket.socket() as connection:
        connection.bind(("127.0.0.1", 0))
        return int(connection.getsockname()[1])


def rows(runs: Path) -> list[dict[str, str]]:
    with (runs / "tiny/version_0/metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The runs' folders of one process, and of two that torchrun's variables bring together."""
    folder = tmp_path_factory.mktemp("ddp")
    data = tiny.make_set(folder / "data")
    one, two = folder / "one", folder / "two"
    jobs = [start(tiny.arguments(data, one, *WORDS))]
    jobs += start_two(tiny.arguments(data, two, *WORDS))
    for job in jobs:
        _, errors = job.communicate(timeout=180)
        assert job.returncode == 0, errors
    return one, two


def start(words: list[str], more: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(tiny.REPOSITORY / "tools" / "train.py"), *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=tiny.environment() | (more or {}),
    )


def start_two(words: list[str]) -> list[subprocess.Popen[str]]:
    """Two processes, brought together by the variables that torchrun sets."""
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    variables |= {"LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0"}
    words = [*words, "--trainer.strategy=ddp", "--trainer.devices=2"]
    return [start(words, variables | {"RANK": rank, "LOCAL_RANK": rank}) for rank in ("0", "1")]


def test_losses(one_and_two: tuple[Path, Path]) -> None:
    one, two = (tiny.losses(runs) for runs in one_and_two)
    assert len(one) == len(two) == 5
    for step, losses in one.items():
        assert two[step] == pytest.approx(losses, rel=2e-5), f"step {step}"


def test_weights_and_statistics(one_and_two: tuple[Path, Path]) -> None:
    one, two = (
        load(runs / "tiny/version_0/checkpoints/last.ckpt")["state_dict"] for runs in one_and_two
    )
    assert list(one) == list(two)
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)


def test_average_precision(one_and_two: tuple[Path, Path]) -> None:
    one, two = (rows(runs)[-1] for runs in one_and_two)
    figures = {key: value for key, value in one.items() if key.startswith("val/")}
    assert len(figures) >= 24
    assert all(figures.values())
    assert {key: two[key] for key in figures} == figures


def test_one_run_folder(one_and_two: tuple[Path, Path]) -> None:
    one, two = (
        {path.name for path in (runs / "tiny/version_0").rglob("*.*") if "events" not in path.name}
        for runs in one_and_two
    )
    assert {n for n in two if ".jpg" not in n} == {n for n in one if ".jpg" not in n}
    assert [path.name for path in (one_and_two[1] / "tiny").iterdir()] == ["version_0"]


def test_a_signal_to_one_process_ends_both(tmp_path: Path) -> None:
    data = tiny.make_set(tmp_path / "data")
    words = tiny.arguments(data, tmp_path, *WORDS)
    jobs = start_two([word for word in words if "max_steps" not in word])
    try:
        for _ in range(1200):
            if (tmp_path / "tiny/version_0/metrics.csv").is_file():
                break
            time.sleep(0.05)
        jobs[1].send_signal(signal.SIGTERM)
        errors = [job.communicate(timeout=60)[1] for job in jobs]
    finally:
        for job in jobs:
            job.kill()
    assert [job.returncode for job in jobs] == [128 + signal.SIGTERM] * 2, errors
    assert "Traceback" not in "".join(errors)
    steps = load(tmp_path / "tiny/version_0/checkpoints/last.ckpt")["global_step"]
    assert f"is after {steps} steps" in errors[0]
