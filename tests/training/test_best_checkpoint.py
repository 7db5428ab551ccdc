"""``best.ckpt`` has the best weights, whenever a run was killed and resumed."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support import tiny

from condseg.cli.train import CommandLine
from condseg.evaluation import CocoEvaluator
from condseg.training.checkpoint_io import AtomicCheckpointIO
from condseg.zoo.checkpoint import load

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")
ARGS = (
    "--trainer.val_check_interval=2",
    "--trainer.limit_val_batches=1",
    "--progress.refresh_rate=0",
    "--validation_images.count=0",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_set(tmp_path_factory.mktemp("data"))


class Training:
    """Trainings whose validations have the mask AP of ``scores``, step -> AP."""

    def __init__(self, data: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.data, self.runs, self.scores = data, runs, dict[int, float]()
        self.checkpoints = runs / "tiny/version_0/checkpoints"
        compute = CocoEvaluator.compute

        def scored(evaluator: CocoEvaluator) -> Any:
            report = compute(evaluator)
            score = self.scores[self.cli.trainer.global_step]
            metrics: Mapping[str, float] = {**report.metrics, "mask/AP": score}
            object.__setattr__(report, "metrics", metrics)
            return report

        monkeypatch.setattr(CocoEvaluator, "compute", scored)

    def run(self, steps: int, scores: dict[int, float], *args: str) -> None:
        self.scores = scores
        args = (*ARGS, f"--trainer.max_steps={steps}", *args)
        self.cli = CommandLine(tiny.arguments(self.data, self.runs, *args))
        self.cli.fit()

    @property
    def best_step(self) -> int:
        return int(load(self.checkpoints / "best.ckpt")["global_step"])


@pytest.fixture
def training(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Training:
    return Training(data, tmp_path, monkeypatch)


def test_a_worse_model_does_not_replace_it_after_resuming(training: Training) -> None:
    training.run(2, {2: 0.9})
    training.run(4, {4: 0.5}, "--ckpt_path=last")
    assert training.best_step == 2
    training.run(6, {6: 0.95}, "--ckpt_path=last")
    assert training.best_step == 6


def test_killed_after_any_write(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step 4 is the best. The folder after each write is what a kill there would leave."""
    write, folders = AtomicCheckpointIO.save_checkpoint, []

    def save(self: AtomicCheckpointIO, content: dict[str, Any], path: Any, **options: Any) -> None:
        write(self, content, path, **options)
        folders.append(training.runs.parent / f"after_{len(folders)}_{Path(path).stem}")
        shutil.copytree(training.checkpoints, folders[-1])

    scores = {2: 0.5, 4: 0.9, 6: 0.7}
    with monkeypatch.context() as patch:
        patch.setattr(AtomicCheckpointIO, "save_checkpoint", save)
        training.run(4, scores)
    around_the_best = folders[-3:]
    assert [folder.name[-4:] for folder in around_the_best] == ["last", "best", "last"]
    for folder in around_the_best:
        shutil.rmtree(training.checkpoints)
        shutil.copytree(folder, training.checkpoints)
        training.run(6, scores, "--ckpt_path=last")
        assert training.best_step == 4, folder.name


def test_a_checkpoint_from_before_the_best(training: Training) -> None:
    """The score to beat is that of the file, not that of the checkpoint."""
    training.run(2, {2: 0.5})
    old = training.checkpoints / "old.ckpt"
    shutil.copy(training.checkpoints / "last.ckpt", old)
    training.run(4, {4: 0.9}, "--ckpt_path=last")
    training.run(6, {4: 0.6, 6: 0.7}, f"--ckpt_path={old}")
    assert training.best_step == 4
    (training.checkpoints / "best.ckpt").write_bytes(b"damaged")
    with pytest.warns(match=r"best\.ckpt .*; the next validation replaces it"):
        training.run(8, {8: 0.1}, "--ckpt_path=last")
    assert training.best_step == 8
