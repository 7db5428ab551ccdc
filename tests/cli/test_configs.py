"""Every configuration parses and builds what its name says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny

from condseg.cli.train import CommandLine
from condseg.layers import DeformConv2d, DyConv2d, DynamicDilatedPyramid2d, ODConv2d
from condseg.models.heads.rtmdet import RTMDetHead
from condseg.models.mask.rtmdet import RTMDetMaskHead
from condseg.models.pyramids.bifpn import BiFPNBlock
from condseg.training.callbacks import ExponentialAveraging
from condseg.training.module import CondInstModule

NAMES = sorted(path.name for path in tiny.CONFIGS.glob("*.yaml") if path.stem != "default")
UNTRAINED = ("--model.network.backbone.weights=null", "--trainer.accelerator=cpu")


def build(tmp_path: Path, *args: str) -> CommandLine:
    """The configuration, on a tiny data set and without pretrained weights."""
    data = tmp_path / "data"
    if not data.is_dir():
        tiny.make_set(data, train=20)
    return CommandLine(
        [*args, *UNTRAINED, f"--data.root={data}", f"--trainer.default_root_dir={tmp_path}"],
    )


def test_the_configurations_of_the_readme_exist() -> None:
    text = (tiny.REPOSITORY / "README.md").read_text()
    names = set(re.findall(r"[\w/]+\.yaml", text))
    assert "quickstart.yaml" in names
    assert {name for name in names if "/" not in name} <= {*NAMES, "default.yaml"}


@pytest.mark.parametrize("name", NAMES)
def test_parses(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"--config {name}" in (tiny.CONFIGS / name).read_text()  # it says how to run it
    monkeypatch.setattr(CommandLine, "before_instantiate_classes", lambda self: None)
    monkeypatch.setattr(CommandLine, "instantiate_classes", lambda self: None)
    cli = CommandLine(["--config", name])
    assert cli.name == name.removesuffix(".yaml")
    assert cli.config.trainer.max_steps >= 100


def parts(model: CondInstModule, kind: type[Any]) -> int:
    return sum(isinstance(module, kind) for module in model.network.modules())


def optimizer_and_factors(
    cli: CommandLine, *steps: int
) -> tuple[torch.optim.Optimizer, list[float]]:
    """The optimizer, and by what the schedule multiplies its rate at each step."""
    optimizer = cli.model.optimizer([{"params": [torch.nn.Parameter(torch.zeros(1))]}])
    schedule: Any = cli.model.schedule(optimizer, cli.trainer.max_steps)
    return optimizer, [schedule.lr_lambdas[0](step) for step in steps]


@pytest.mark.parametrize(
    ("name", "layer", "count"),
    [
        ("condinst_odconv_r18.yaml", ODConv2d, 16),  # all 3x3 of the eight blocks
        pytest.param("condinst_odconv.yaml", ODConv2d, 48, marks=pytest.mark.slow),
        pytest.param("condinst_odconv.yaml", DynamicDilatedPyramid2d, 1, marks=pytest.mark.slow),
        pytest.param("condinst_dyconv.yaml", DyConv2d, 48, marks=pytest.mark.slow),
    ],
)
def test_dynamic_layers(tmp_path: Path, name: str, layer: type[Any], count: int) -> None:
    model = build(tmp_path, f"--config={name}").model
    assert parts(model, layer) == count
    assert model.network.head.class_logits.out_channels == 2


def test_boxinst_with_everything(tmp_path: Path) -> None:
    files = ("--config=boxinst_r101_bifpn_dcni3.yaml", "--config=schedule_3x.yaml")
    cli = build(tmp_path, *files, "--model.network.backbone.width=8")
    assert parts(cli.model, DeformConv2d) == 30  # all blocks of three stages
    assert parts(cli.model, BiFPNBlock) == 6
    assert cli.config.model.mask_loss.supervision == cli.config.data.supervision == "boxes"
    assert cli.model.network.mask_head.num_params == 233  # as AdelaiDet's checkpoints
    assert cli.trainer.max_steps == 270_000
    _, factors = optimizer_and_factors(cli, 209_999, 210_000, 249_999, 250_000)
    assert factors == pytest.approx([1, 0.1, 0.1, 0.01])


def test_paper_schedule(tmp_path: Path) -> None:
    cli = build(tmp_path, "--config=condinst_r50.yaml", "--model.network.backbone.width=8")
    assert cli.trainer.max_steps == 90_000
    assert cli.datamodule.batch_size == 16
    optimizer, factors = optimizer_and_factors(cli, 0, 1000, 59_999, 60_000, 80_000)
    assert factors == pytest.approx([0.001, 1, 1, 0.1, 0.01])
    assert isinstance(optimizer, torch.optim.SGD)
    expected = {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.0001}
    assert optimizer.defaults | expected == optimizer.defaults


def test_tabletop_after_another(tmp_path: Path) -> None:
    files = ("--config=condinst_odconv_r18.yaml", "--config=tabletop.yaml")
    cli = build(tmp_path, *files, "--model.network.backbone.width=8")
    assert cli.name == "condinst_odconv_r18-tabletop"
    assert parts(cli.model, ODConv2d) == 16
    assert optimizer_and_factors(cli, cli.trainer.max_steps)[1] == pytest.approx([0])  # cosine


def test_rtmdet(tmp_path: Path) -> None:
    args = ("--config=rtmdet_ins_r50.yaml", "--model.network.backbone.width=8")
    cli = build(tmp_path, *args)
    assert isinstance(cli.model.network.head, RTMDetHead)
    assert cli.model.network.mask_head.num_params == 169
    optimizer, factors = optimizer_and_factors(cli, 1000, 45_000, 90_000)
    assert factors == [1, 1, 0.05]
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["lr"] * 256 / cli.datamodule.batch_size == 0.004
    assert build(tmp_path, *args, "--config=tabletop.yaml").trainer.max_steps == 1500


def test_rtmdets_training(tmp_path: Path) -> None:
    files = ("--config=rtmdet_ins_tiny.yaml", "--config=schedule_rtmdet.yaml")
    cli = build(tmp_path, *files, "--data.batch_size=8")
    assert isinstance(cli.model.network.mask_head, RTMDetMaskHead)
    assert cli.datamodule.train_dataset.augmentation.mosaic_epochs == 280
    assert cli.datamodule.train_dataset[0].image.shape == (3, 640, 640)
    assert not cli.model.decay_biases
    assert cli.model.criterion.mask_loss.max_proposals is None
    optimizer, factors = optimizer_and_factors(cli, 0, 1000, 68_700, 137_400)
    assert factors == pytest.approx([1e-5, 1, 1, 0.05])
    assert optimizer.defaults["lr"] == 0.004


def test_quickstart(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    cli = build(tmp_path, "--config=quickstart.yaml")
    assert parts(cli.model, ODConv2d) > 0
    callbacks = cli.trainer.callbacks  # type: ignore[attr-defined]
    assert any(isinstance(callback, ExponentialAveraging) for callback in callbacks)


def test_rgbd_overrides_the_quickstart(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    files = ("--config=quickstart.yaml", "--config=condinst_rgbd.yaml")
    without_depth = "--model.network.depth_channels=null"
    network = build(tmp_path, *files, without_depth).model.network
    assert any(isinstance(m, DynamicDilatedPyramid2d) for m in network.modules())
    assert network.depth_encoder is None
