"""Runs: resumed from a path alone, restarted by ``auto``, and what is said about their files."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import RichProgressBar
from support import tiny

import condseg
from condseg.cli.train import CommandLine, main
from condseg.training.callbacks import ExponentialAveraging, Progress
from condseg.training.module import CondInstModule
from condseg.zoo.checkpoint import RECIPE, load, save

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")

QUIET = ("--progress.refresh_rate=0", "--validation_images.count=0")
NO_VALIDATION = (*QUIET, "--trainer.limit_val_batches=0")
CALLBACKS = "lightning.pytorch.callbacks"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_set(tmp_path_factory.mktemp("data"))


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the command logs."""
    lines: list[str] = []
    monkeypatch.setattr("condseg.cli.train.rank_zero_info", lines.append)
    return lines


def train(data: Path, runs: Path, *args: str) -> CommandLine:
    cli = CommandLine(tiny.arguments(data, runs, *NO_VALIDATION, *args))
    cli.fit()
    return cli


def last(runs: Path, version: int = 0) -> Path:
    return runs / f"tiny/version_{version}/checkpoints/last.ckpt"


def test_a_path_alone_resumes_the_run(data: Path, tmp_path: Path, log: list[str]) -> None:
    """With its data, options and callbacks, in its folder."""
    averaging = "--trainer.callbacks+=condseg.training.callbacks.ExponentialAveraging"
    train(data, tmp_path / "whole", averaging)
    train(data, tmp_path / "parts", averaging, "--trainer.max_steps=3")
    checkpoint = last(tmp_path / "parts")
    log.clear()
    cli = CommandLine([f"--ckpt_path={checkpoint}", "--trainer.max_steps=6"])
    cli.fit()
    assert log[0] == f"resuming {checkpoint} after 3 steps\n  trainer.max_steps is 6, was 3"
    assert cli.run_folder == tmp_path / "parts/tiny/version_0"
    whole, parts = (tiny.losses(tmp_path / name) for name in ("whole", "parts"))
    assert [*parts] == [*whole]
    config = yaml.safe_load((cli.run_folder / "config.yaml").read_text())
    assert config["trainer"]["max_steps"] == 6
    assert config["data"]["root"] == str(data)
    # The configuration files and options of the first command may be repeated.
    again = CommandLine(tiny.arguments(data, tmp_path / "parts", averaging, "--ckpt_path=last"))
    callbacks = again.trainer.callbacks  # type: ignore[attr-defined]
    assert sum(isinstance(callback, ExponentialAveraging) for callback in callbacks) == 1


def test_a_moved_checkpoint_holds_its_configuration(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path, "--trainer.max_steps=2", "--data.batch_size=3")
    moved = last(tmp_path).rename(tmp_path / "moved.ckpt")
    cli = CommandLine([f"--ckpt_path={moved}", f"--trainer.default_root_dir={tmp_path}"])
    assert cli.config.data.batch_size == 3
    assert cli.config.data.root == str(data)


def test_a_failed_restore_leaves_the_configuration(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(data, tmp_path, "--trainer.max_steps=2")
    config = tmp_path / "tiny/version_0/config.yaml"
    before = config.read_text()
    cli = CommandLine([f"--ckpt_path={last(tmp_path)}", "--trainer.max_steps=4"])

    def fail(*_: object, **__: object) -> None:
        raise ValueError("damaged")

    monkeypatch.setattr(CondInstModule, "load_state_dict", fail)
    with pytest.raises(ValueError, match="damaged"):
        cli.fit()
    assert config.read_text() == before


def test_auto(data: Path, tmp_path: Path, log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Starts, resumes what was interrupted, and ends at once if there is nothing to train."""
    step = CondInstModule.training_step

    def interrupted(self: CondInstModule, batch: object, index: int) -> object:
        if self.global_step == 4:
            raise ConnectionError("the node is gone")
        return step(self, batch, index)  # type: ignore[arg-type]

    monkeypatch.setattr(CondInstModule, "training_step", interrupted)
    args = ("--ckpt_path=auto", "--last_checkpoint.every_n_steps=2")
    with pytest.raises(ConnectionError):
        train(data, tmp_path, *args)
    monkeypatch.setattr(CondInstModule, "training_step", step)
    log.clear()
    train(data, tmp_path, *args)
    assert log[0] == f"resuming {last(tmp_path)} after 4 steps"
    assert [*tiny.losses(tmp_path)] == [*range(6)]
    log.clear()
    finished = last(tmp_path).read_bytes()
    train(data, tmp_path, *args)
    assert log[-1].startswith(f"{last(tmp_path)} is at the end of its training of 6 steps")
    assert last(tmp_path).read_bytes() == finished
    # Another configuration is another run.
    assert train(data, tmp_path, *args, "--data.seed=1").run_folder == last(tmp_path, 1).parents[1]


def test_auto_after_a_run_without_checkpoint(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path, "--trainer.max_steps=1")
    last(tmp_path).unlink()
    cli = train(data, tmp_path, "--trainer.max_steps=1", "--ckpt_path=auto")
    assert cli.run_folder == tmp_path / "tiny/version_1"


def test_a_checkpoint_without_training_state(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny.write_checkpoint(tmp_path / "converted.ckpt")
    content = load(path)
    del content["global_step"]
    save(content, path)
    message = tiny.error(main, tiny.arguments(data, tmp_path, f"--ckpt_path={path}"), capsys)
    assert message == (
        f"checkpoint {path} has weights but no state of a training to resume; --init_from {path} "
        "starts a training with them"
    )


def test_a_progress_bar_of_the_user_or_none(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for option, bar in (
        ("--trainer.enable_progress_bar=false", None),
        (f"--trainer.callbacks+={CALLBACKS}.RichProgressBar", RichProgressBar),
        ("--trainer.enable_progress_bar=true", Progress),
    ):
        cli = CommandLine(tiny.arguments(data, tmp_path, option))
        assert type(cli.trainer.progress_bar_callback) is (bar or type(None))
    # Of Lightning's lines, those on which a user can act.
    assert "GPU available" in caplog.text
    assert "Seed set" not in caplog.text
    assert "TPU" not in caplog.text


REFUSED = {
    "--trainer.precision=64-true": "trainer.precision is 64-true; 32-true, bf16-mixed, 16-mixed "
    "are allowed",
    "--trainer.accelerator=gpu": "trainer: No supported gpu backend found!",
    "--ckpt_path=/": "--ckpt_path /: no such file",
    "--trainer.enable_checkpointing=false": "trainer: Trainer was configured with ",
    f'--trainer.callbacks+={{"class_path": "{CALLBACKS}.EarlyStopping", "init_args": '
    '{"monitor": "val_loss"}}': "trainer.callbacks: EarlyStopping has the monitor val_loss; "
    "allowed are the columns of metrics.csv, as val/mask_AP, val/box_AP50 or train/loss",
}


@pytest.mark.parametrize("option", REFUSED)
def test_refused_options_of_the_trainer(
    option: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if option.endswith("=gpu") and torch.cuda.is_available():
        pytest.skip("there is a GPU; the test is about a missing one")
    assert REFUSED[option] in tiny.error(main, tiny.arguments(data, tmp_path, option), capsys)
    assert not (tmp_path / "tiny").exists()


def test_a_list_in_place_of_keys(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "list.yaml"
    file.write_text("model: {postprocess: ['1']}")
    message = tiny.error(main, tiny.arguments(data, tmp_path, f"--config={file}"), capsys)
    assert message == "model.postprocess must have keys and values, has ['1']"


def closing_lines(
    data: Path, runs: Path, capsys: pytest.CaptureFixture[str], *args: str
) -> list[str]:
    capsys.readouterr()
    main(tiny.arguments(data, runs, *QUIET, "--trainer.max_steps=1", *args))
    printed = capsys.readouterr()
    assert "Trainer.fit" not in printed.err  # in the line of the progress bar
    return printed.out.strip().splitlines()


def test_the_closing_lines_name_files_that_exist(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "tiny/version_0"
    lines = closing_lines(data, tmp_path, capsys, "--trainer.limit_val_batches=0")
    assert lines[0] == f"checkpoints, metrics.csv are in {run}"
    assert lines[2] == f"  python tools/eval.py --checkpoint {run}/checkpoints/last.ckpt"
    lines = closing_lines(data, tmp_path, capsys, "--trainer.fast_dev_run=true")
    assert lines == ["fast_dev_run: nothing was written"]
    assert [path.name for path in tmp_path.rglob("version_*")] == ["version_0"]


@pytest.mark.parametrize("form", ["=", "+="])
def test_other_loggers_add_to_the_run(
    form: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All checkpoints are in the run folder, which has metrics.csv and TensorBoard's events."""
    logger = "lightning.pytorch.loggers.CSVLogger"
    args = (f"--trainer.logger{form}{logger}", f"--trainer.logger.save_dir={tmp_path / 'other'}")
    lines = closing_lines(data, tmp_path / "runs", capsys, *args)
    run = tmp_path / "runs/tiny/version_0"
    files = {path.name for path in run.rglob("*") if path.is_file() and "events" not in path.name}
    assert {"best.ckpt", "last.ckpt", "config.yaml", "metrics.csv"} <= files
    assert list(run.glob("events*"))
    assert lines[2].endswith(f"--checkpoint {run}/checkpoints/best.ckpt")
    assert not list((tmp_path / "other").rglob("*.ckpt"))
    assert list((tmp_path / "other").rglob("metrics.csv"))


def test_without_loggers(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    closing_lines(data, tmp_path, capsys, "--trainer.logger=false")
    names = {path.name for path in (tmp_path / "tiny/version_0").rglob("*.*")}
    assert names == {"best.ckpt", "last.ckpt", "config.yaml", "metrics.csv", ".lock"}


def test_the_end_is_validated_whatever_the_interval(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ("--trainer.max_steps=-1", "--trainer.max_epochs=2", "--trainer.val_check_interval=100")
    lines = closing_lines(data, tmp_path, capsys, *args)
    assert lines[2].endswith("checkpoints/best.ckpt")


def test_boxes_alone(tmp_path: Path, log: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Trains with BoxInst, evaluates boxes only, and keeps the checkpoint of the best box AP."""
    data = tiny.make_set(tmp_path / "data", 8, 2)
    for file in data.glob("*.json"):
        content = json.loads(file.read_text())
        for annotation in content["annotations"]:
            del annotation["segmentation"]
        file.write_text(json.dumps(content))
    message = tiny.error(main, tiny.arguments(data, tmp_path, *QUIET), capsys)
    assert message == (
        f"{data}/instances_train.json: no object has a segmentation; data.supervision boxes learns "
        "masks from boxes"
    )
    cli = main(tiny.arguments(data, tmp_path, *QUIET, "--data.supervision=boxes"))
    assert cli.run_folder is not None
    best = cli.run_folder / "checkpoints/best.ckpt"
    report = condseg.load(best).evaluate(workers=0)
    assert report["box/AP"] >= 0
    assert "mask/AP" not in report.metrics
    assert report.notes == ("box AP alone, since no object of this set has a segmentation",)
    assert "mask" not in report.table()
    states = torch.load(best, weights_only=True)["callbacks"].values()
    assert [s["monitor"] for s in states if s.get("monitor")] == ["val/box_AP"]


ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)
RECIPES = {
    "head.init_args.tower_convs": (10**5, "tower_convs is 100000; 0 to 100 is allowed"),
    "head.class_path": ("os.system", "os.system"),
    "channels": (2**40, "Storage size calculation overflowed"),
    "mask_features": (10**400, "model.network.mask_features is an integer of more than 64 bits"),
    "backbone.width": (ENDLESS, "is nested deeper than 20 levels"),
    "backbone.conv": (
        {"class_path": "condseg.layers.ODConv2d", "init_args": {"num_experts": 10**9}},
        "num_experts is 1000000000; 1 to 100 is allowed",
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_start_with_an_absurd_recipe_is_refused_before_it_is_built(
    name: str,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    value, message = RECIPES[name]
    path = tiny.write_checkpoint(tmp_path / "start.ckpt")
    content = torch.load(path, weights_only=True)
    owner = content[RECIPE]["model"]["network"]
    *keys, last = name.split(".")
    for key in keys:
        owner = owner[key]
    owner[last] = value
    torch.save(content, path)
    monkeypatch.setattr(CommandLine, "instantiate_classes", lambda _: pytest.fail("it is built"))
    refusal = tiny.error(main, tiny.arguments(data, tmp_path, f"--init_from={path}"), capsys)
    assert refusal.startswith(f"--init_from {path}: ")
    assert message in refusal
