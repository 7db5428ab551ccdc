"""Run folders: numbering, metrics.csv, and the checkpoint to resume from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from condseg.training.checkpoint_io import AtomicCheckpointIO
from condseg.training.runs import MetricsLogger, check_same_network, find_checkpoint
from condseg.zoo.checkpoint import load, newest_best


def test_last_is_the_newest_version(tmp_path: Path) -> None:
    for version in (2, 10, 9):
        folder = tmp_path / f"version_{version}" / "checkpoints"
        folder.mkdir(parents=True)
        (folder / "last.ckpt").touch()
    (tmp_path / "version_11").mkdir()
    assert find_checkpoint("last", tmp_path) == tmp_path / "version_10/checkpoints/last.ckpt"
    assert find_checkpoint(None, tmp_path) is None
    assert find_checkpoint("x.ckpt", tmp_path) == Path("x.ckpt")
    with pytest.raises(ValueError, match=r"last: no run in .* has one; start with: train$"):
        find_checkpoint("last", tmp_path / "version_11", "train")


def test_a_resumed_run_continues_its_metrics(tmp_path: Path) -> None:
    run = (str(tmp_path), "a", "version_0")
    logger = MetricsLogger(*run)
    for step in range(4):
        logger.log_metrics({"x": float(step)}, step)
    MetricsLogger(*run, first_step=2).log_metrics({"y": 7.0}, 2)
    text = (tmp_path / "a/version_0/metrics.csv").read_text()
    assert text.split() == ["step,x,y", "0,0.0,", "1,1.0,", "2,,7.0"]


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
