"""A command with ``--ckpt_path auto`` that is started again, by torchrun or a job scheduler."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import tiny

pytestmark = [pytest.mark.tool, pytest.mark.slow]
STEPS = 30


def torchrun(data: Path, runs: Path, *args: str) -> list[str]:
    """Two processes, which torchrun starts again if one of them ends."""
    with socket.socket() as connection:
        connection.bind(("127.0.0.1", 0))
        port = connection.getsockname()[1]
    # With --standalone, torch 2.14 keeps the addresses of killed ranks.
    options = ("--nproc_per_node=2", "--max_restarts=2", f"--master_port={port}")
    script = str(tiny.REPOSITORY / "tools" / "train.py")
    return [
        *(sys.executable, "-m", "torch.distributed.run", *options, script),
        *tiny.arguments(data, runs, f"--trainer.max_steps={STEPS}", "--trainer.devices=2"),
        *("--trainer.strategy=ddp", "--ckpt_path=auto", "--last_checkpoint.every_n_steps=5"),
        *("--progress.refresh_rate=0", "--trainer.limit_val_batches=0", *args),
    ]


def children(process: subprocess.Popen[str]) -> list[int]:
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(number) for number in path.read_text().split()]


def wait_for(path: Path, newer_than: float, process: subprocess.Popen[str]) -> None:
    for _ in range(6000):  # ten minutes, for a busy machine
        if path.is_file() and path.stat().st_mtime > newer_than:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError(f"{path} was not written")


def test_ranks_are_killed(tmp_path: Path) -> None:
    """Each of the two, one after the other; a further start finds nothing to train."""
    data = tiny.make_set(tmp_path / "data")
    runs = tmp_path / "runs"
    last = runs / "tiny/version_0/checkpoints/last.ckpt"
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        torchrun(data, runs), stdout=pipe, stderr=pipe, text=True, env=tiny.environment()
    )
    written = 0.0
    for rank in (1, 0):
        wait_for(last, written, process)
        ranks = children(process)
        assert len(ranks) == 2
        os.kill(ranks[rank], signal.SIGKILL)
        written = last.stat().st_mtime + 0.5
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert errors.count(f"resuming {last} after ") == 2
    assert [path.name for path in last.parents[2].iterdir()] == ["version_0"]
    assert [*tiny.losses(runs)] == [*range(STEPS)]

    finished = subprocess.run(
        torchrun(data, runs),
        capture_output=True,
        text=True,
        check=False,
        env=tiny.environment(),
    )
    assert finished.returncode == 0, finished.stderr
    assert f"at the end of its training of {STEPS} steps" in finished.stderr
    assert [path.name for path in last.parents[2].iterdir()] == ["version_0"]
