"""Run folders: numbering, metrics.csv, and the checkpoint to resume from."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import tiny

from condseg.training.checkpoint_io import AtomicCheckpointIO
from condseg.training.config_differences import check_same_network, differences
from condseg.training.metrics_file import MetricsLogger, run_loggers
from condseg.training.runs import (
    lock_run,
    newest_checkpoint,
    newest_run,
    reserve_run,
    run_of,
    write_text,
)
from condseg.zoo.checkpoint import load, newest_best


def test_last_is_the_newest_version(tmp_path: Path) -> None:
    for version in (2, 10, 9):
        folder = tmp_path / f"version_{version}" / "checkpoints"
        folder.mkdir(parents=True)
        (folder / "last.ckpt").touch()
    (tmp_path / "version_11").mkdir()
    newest = newest_checkpoint(tmp_path)
    assert newest == tmp_path / "version_10/checkpoints/last.ckpt"
    assert run_of(newest) == tmp_path / "version_10"
    assert run_of(tmp_path / "moved.ckpt") is None
    with pytest.raises(ValueError, match=r"last: no run in .* has one; --ckpt_path auto starts"):
        newest_checkpoint(tmp_path / "version_11")


def test_the_newest_run_of_a_configuration(tmp_path: Path) -> None:
    assert newest_run(tmp_path, {"a": {"x": 1}}) is None
    for version, value in ((2, 1), (9, 1), (10, 2)):
        (tmp_path / f"version_{version}").mkdir()
        text = f"{{a: {{x: {value}}}, ckpt_path: any}}"
        (tmp_path / f"version_{version}/config.yaml").write_text(text)
    (tmp_path / "version_11").mkdir()
    assert newest_run(tmp_path, {"a": {"x": 1}, "new": 0}) == tmp_path / "version_9"
    assert newest_run(tmp_path, {"a": {"x": 2}}) == tmp_path / "version_10"
    assert newest_run(tmp_path, {"a": {"x": 3}}) is None
    (tmp_path / "version_11/config.yaml").write_text("a: [")
    with pytest.raises(ValueError, match=r"version_11/config.yaml is damaged: "):
        newest_run(tmp_path, {"a": {"x": 1}})


def test_differences() -> None:
    other, own = {"a": {"x": 1, "y": [2]}, "b": 3}, {"a": {"x": 1, "y": [4]}, "new": 5}
    assert list(differences(other, own)) == [("a.y", [2], [4]), ("b", 3, None)]


RESERVE = """
import sys, pathlib
from condseg.training.runs import reserve_run
sys.stdin.readline()
for _ in range(20):
    print(reserve_run(pathlib.Path(sys.argv[1])).name)
"""


@pytest.mark.tool
def test_runs_that_start_at_the_same_time(tmp_path: Path) -> None:
    """Each has a folder of its own, in four processes that reserve twenty each."""
    reserve_run(tmp_path / "runs")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RESERVE, str(tmp_path / "runs")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=tiny.environment(),
        )
        for _ in range(4)
    ]
    names = [n for process in processes for n in process.communicate("start\n")[0].split()]
    assert sorted(names, key=lambda n: int(n[8:])) == [f"version_{k}" for k in range(1, 81)]


LOCK = """
import os, pathlib, sys, time
from condseg.training.runs import lock_run
with lock_run(pathlib.Path(sys.argv[1])):
    worker = os.fork()
    if worker == 0:
        time.sleep(600)
    print(worker, flush=True)
    time.sleep(600)
"""


@pytest.mark.tool
def test_a_run_belongs_to_one_living_process(tmp_path: Path) -> None:
    """A process that it has forked, as a loader does, does not keep the run."""
    process = subprocess.Popen(
        [sys.executable, "-c", LOCK, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env=tiny.environment(),
    )
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    try:
        refused = pytest.raises(ValueError, match="another process still trains in it; it can be")
        with refused, lock_run(tmp_path):
            pass
        process.kill()
        process.wait()
        os.kill(worker, 0)  # still there
        with lock_run(tmp_path):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
        process.stdout.close()


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.yaml"
    write_text(path, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["config.yaml"]


def metrics(folder: Path, first_step: int = 0) -> MetricsLogger:
    return MetricsLogger(str(folder), "a", "version_0", first_step)


@pytest.fixture
def four_steps(tmp_path: Path) -> Path:
    """A metrics.csv of steps 0 to 3."""
    logger = metrics(tmp_path)
    for step in range(4):
        logger.log_metrics({"x": float(step)}, step)
    return tmp_path / "a/version_0/metrics.csv"


def test_a_run_that_logs_nothing_leaves_no_empty_files(tmp_path: Path) -> None:
    for logger in run_loggers(tmp_path / "tiny/version_0", 0):
        logger.save()
        logger.finalize("success")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    metrics, events = run_loggers(tmp_path / "tiny/version_0", 0)
    for logger in (metrics, events):
        logger.log_metrics({"train/loss": 1.0}, 0)
        logger.save()
        logger.finalize("success")
    kinds = {path.name.split(".")[0] for path in tmp_path.rglob("*") if path.is_file()}
    assert kinds == {"metrics", "events"}


def test_a_resumed_run_continues_its_metrics(four_steps: Path, tmp_path: Path) -> None:
    metrics(tmp_path, 2).log_metrics({"y": 7.0}, 2)
    assert four_steps.read_text().split() == ["step,x,y", "0,0.0,", "1,1.0,", "2,,7.0"]


TORN = {  # removed bytes at the end, or the new end
    "half a row": -2,
    "half a step": "1",
    "zeros": "\0\0\0",
    "a row of zeros": "\0\0\0\n",
    "not a number": "x,1\r\n",
    "half the header": "st",
}


@pytest.mark.parametrize("torn", TORN)
def test_a_torn_row_is_dropped(torn: str, four_steps: Path, tmp_path: Path) -> None:
    """The row of the last step, which the resumed run does not write again, is whole or absent."""
    end = TORN[torn]
    text = four_steps.read_bytes().decode()
    text = text[:end] if isinstance(end, int) else text + end
    if torn == "half the header":
        text = "st"
    four_steps.write_bytes(text.encode())
    logger = metrics(tmp_path, 4)
    with pytest.warns(UserWarning, match=r"metrics.csv: 1 incomplete row dropped"):
        logger.log_metrics({"x": 9.0}, 4)
    rows = four_steps.read_text().split()
    whole = {"half a row": 3, "half the header": 0}.get(torn, 4)
    # Lightning sorts the columns when it sees new ones.
    assert rows == ["step,x", *(f"{k},{k}.0" for k in range(whole)), "4,9.0"]


def test_new_columns_are_added_atomically(
    four_steps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole file is written again for them; a kill meanwhile leaves the old one."""
    old, logger = four_steps.read_bytes(), metrics(tmp_path, 4)
    logger.log_metrics({"x": 4.0}, 4)
    old = four_steps.read_bytes()

    def killed(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        logger.log_metrics({"y": 5.0}, 5)
    assert four_steps.read_bytes() == old


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"channels": 8, "backbone": {"conv": None, "weights": "a"}}, None),
        ({"channels": 9, "backbone": {"conv": None}}, "x has model.network.channels 8, .* 9"),
        ({"channels": 8, "backbone": {"conv": {"class_path": "C"}}}, "backbone.conv None, .*'C'"),
    ],
)
def test_a_checkpoint_of_another_network(own: dict[str, Any], message: str | None) -> None:
    other = {"channels": 8, "backbone": {"conv": None, "weights": None}}
    if message is None:
        check_same_network("x", other, own, {"backbone.weights"})
        return
    with pytest.raises(ValueError, match=message):
        check_same_network("x", other, own, {"backbone.weights"})


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": {}, "step": 1}, path)
    with pytest.raises((AttributeError, TypeError, RuntimeError, OSError)):
        AtomicCheckpointIO().save_checkpoint({"state_dict": {}, "bad": lambda: None}, path)
    assert load(path)["step"] == 1
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_newest_best(tmp_path: Path) -> None:
    assert newest_best(tmp_path) is None
    for time, name in enumerate(("a/version_0", "b/version_3", "a/version_1")):
        folder = tmp_path / name / "checkpoints"
        folder.mkdir(parents=True)
        for file in ("last.ckpt", "best.ckpt")[: 1 if name.startswith("b") else 2]:
            (folder / file).touch()
            os.utime(folder / file, (time, time))
    assert newest_best(tmp_path) == tmp_path / "a/version_1/checkpoints/best.ckpt"
    (tmp_path / "b/version_3/checkpoints/last.ckpt").touch()
    assert newest_best(tmp_path) == tmp_path / "b/version_3/checkpoints/last.ckpt"
