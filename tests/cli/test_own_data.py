"""Training by ``--data`` alone: the plan, and what overrides it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from support import tiny

import condseg
from condseg.cli.config_files import CONFIGS, config_path
from condseg.cli.own_data import expand
from condseg.cli.train import CommandLine, main
from condseg.training.config_differences import differences
from condseg.training.runs import read_run_config

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")

CPU = {"trainer.accelerator": "cpu", "trainer.devices": 1, "trainer.precision": "32-true"}
QUIET = {"progress.refresh_rate": 0, "validation_images.count": 0, "data.workers": 0}
OPTIONS = [f"--{key}={value}" for key, value in (CPU | QUIET).items()]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tiny.make_set(tmp_path / "my.set", 12, 2)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the command logs."""
    lines: list[str] = []
    monkeypatch.setattr("condseg.cli.train.rank_zero_info", lines.append)
    return lines


def test_the_folder_decides(data: Path, tmp_path: Path, log: list[str]) -> None:
    runs = f"--trainer.default_root_dir={tmp_path}"
    cli = CommandLine(["--data", str(data), runs, *OPTIONS, "--trainer.max_steps=300"])
    config = cli.config
    assert cli.name == "my.set"
    assert config.data.root == str(data)
    assert (config.data.batch_size, config.data.val_short_side) == (4, 160)
    backbone = config.model.network.backbone
    assert (backbone.name, backbone.norm) == ("tf_efficientnet_lite0", "batch")
    assert [c.class_path.rpartition(".")[2] for c in config.trainer.callbacks] == [
        "ExponentialAveraging"
    ]
    assert config.model.optimizer.class_path == "torch.optim.AdamW"
    # Options override the plan, and the lines show what is trained.
    (plan,) = (line for line in log if line.startswith("plan"))
    assert "8 images with objects, 2 for validation, categories: 2" in plan
    assert "300 of 4 images (150.0 times each image)  [--trainer.max_steps" in plan
    assert "CondInst on tf_efficientnet_lite0, weights imagenet" in plan


def test_a_checkpoint_of_other_classes_and_an_exact_record(
    data: Path, tmp_path: Path, log: list[str]
) -> None:
    start = tiny.write_checkpoint(tmp_path / "start.ckpt")
    options = CPU | QUIET | {"data.short_sides": [64], "data.val_short_side": 64}
    more = {"max_steps": 1, "runs": tmp_path, "name": "mine", "init_from": start}
    model = condseg.train(data=data, options=options, **more)
    run = tmp_path / "mine/version_0"
    assert model.source == str(run / "checkpoints/best.ckpt")
    assert model.names == ("box", "disc")
    (plan,) = (line for line in log if line.startswith("plan"))
    assert f"CondInst on resnet18, all weights from {start}" in plan
    # The record alone gives the same configuration, and so does resuming.
    config = read_run_config(run / "config.yaml")
    assert config["data"]["root"] == str(data)
    assert config["data"]["batch_size"] == 4
    assert config["temperature"]["steps"] == 34
    cli = CommandLine([f"--ckpt_path={run}/checkpoints/last.ckpt"])
    assert not [*differences(config, yaml.safe_load(yaml.safe_dump(cli._record())))]


def test_boxes_are_learned_from(data: Path, tmp_path: Path, log: list[str]) -> None:
    for file in data.glob("*.json"):
        content = json.loads(file.read_text())
        for annotation in content["annotations"]:
            del annotation["segmentation"]
        file.write_text(json.dumps(content))
    start = tiny.write_checkpoint(tmp_path / "start.ckpt")
    cli = CommandLine([f"--data={data}", f"--init_from={start}", *OPTIONS])
    assert cli.config.data.supervision == "boxes"
    assert "boxes  [--data.supervision]" in log[0]


def test_short_options() -> None:
    assert expand(["--data=a", "--images", "b", "--data.seed", "1"]) == [
        *("--data.root=a", "--data.train_images=b", "--data.val_images=b", "--data.seed", "1")
    ]
    assert config_path("quickstart") == CONFIGS / "quickstart.yaml"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--data"], "--data needs a value"),
        (["--data=/nowhere"], "data.root: /nowhere does not exist. Own data are set by --data"),
        (["--config=quickstart", "--name=a/b"], "--name is 'a/b'; a folder's name is allowed"),
    ],
)
def test_one_line(
    args: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in tiny.error(main, args, capsys)


def test_random_weights_that_stay_are_named(data: Path, tmp_path: Path, log: list[str]) -> None:
    random = "--model.network.backbone.weights=null"
    frozen = "--model.network.backbone.freeze_stages=2"
    CommandLine(tiny.arguments(data, tmp_path, random))
    assert log == []
    CommandLine(tiny.arguments(data, tmp_path, random, frozen))
    assert log == [
        "model.network.backbone.weights is null, and model.network.backbone.freeze_stages 2 keep "
        "them random; --model.network.backbone.freeze_stages 0 trains all"
    ]
