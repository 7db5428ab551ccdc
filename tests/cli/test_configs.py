"""Every configuration parses, and is what its name says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support import tiny

from condseg.cli.train import CommandLine
from condseg.layers import DeformConv2d, DyConv2d, DynamicDilatedPyramid2d, ODConv2d
from condseg.models.heads.rtmdet import RTMDetHead
from condseg.models.pyramids.bifpn import BiFPNBlock
from condseg.training.callbacks import ExponentialAveraging
from condseg.training.module import CondInstModule
from condseg.training.schedules import WarmupCosine, WarmupMultiStep

NAMES = sorted(path.name for path in tiny.CONFIGS.glob("*.yaml") if path.stem != "default")
STATIC = ("--model.network.backbone.weights=null", "--trainer.accelerator=cpu")


def build(tmp_path: Path, *words: str) -> CommandLine:
    """The configuration with the tiny set in place of its own and no weights to fetch."""
    data = tmp_path / "data"
    if not data.is_dir():
        tiny.make_set(data, train=20)
    return CommandLine(
        tiny.CONFIGS,
        [*words, *STATIC, f"--data.root={data}", f"--trainer.default_root_dir={tmp_path}"],
    )


def test_those_of_the_readme_are_there() -> None:
    assert set(NAMES) >= {
        "condinst_r50.yaml",
        "condinst_r101.yaml",
        "condinst_odconv.yaml",
        "condinst_odconv_r18.yaml",
        "condinst_dyconv.yaml",
        "condinst_r50_sem.yaml",
        "rtmdet_ins_r50.yaml",
        "condinst_r50_bifpn.yaml",
        "boxinst_r50.yaml",
        "boxinst_r101_bifpn_dcni3.yaml",
        "tabletop.yaml",
        "quickstart.yaml",
        "condinst_rgbd.yaml",
    }


@pytest.mark.parametrize("name", NAMES)
def test_says_how_to_run_it(name: str) -> None:
    text = (tiny.CONFIGS / name).read_text()
    assert f"--config {name}" in text
    assert isinstance(yaml.safe_load(text), dict)


@pytest.mark.parametrize("name", NAMES)
def test_parses(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CommandLine, "before_instantiate_classes", lambda self: None)
    monkeypatch.setattr(CommandLine, "instantiate_classes", lambda self: None)
    cli = CommandLine(tiny.CONFIGS, ["--config", name])
    assert cli.name == name.removesuffix(".yaml")
    assert cli.config.trainer.max_steps >= 100


def parts(model: CondInstModule, kind: type[Any]) -> int:
    return sum(isinstance(module, kind) for module in model.network.modules())


def test_odconv_r18(tmp_path: Path) -> None:
    model = build(tmp_path, "--config=condinst_odconv_r18.yaml").model
    assert parts(model, ODConv2d) == 16  # all 3x3 of the eight blocks
    assert model.network.num_classes == 2


@pytest.mark.slow
def test_odconv(tmp_path: Path) -> None:
    model = build(tmp_path, "--config=condinst_odconv.yaml").model
    assert parts(model, ODConv2d) == 48
    assert parts(model, DynamicDilatedPyramid2d) == 1


@pytest.mark.slow
def test_dyconv(tmp_path: Path) -> None:
    assert parts(build(tmp_path, "--config=condinst_dyconv.yaml").model, DyConv2d) > 0


def test_boxinst_with_everything(tmp_path: Path) -> None:
    words = ("--config=boxinst_r101_bifpn_dcni3.yaml", "--config=schedule_3x.yaml")
    cli = build(tmp_path, *words, "--model.network.backbone.width=8")
    assert parts(cli.model, DeformConv2d) == 11  # blocks 0, 3, ... of three stages
    assert parts(cli.model, BiFPNBlock) == 6
    assert cli.model.criterion.supervision == cli.datamodule.supervision == "boxes"
    assert cli.model.network.mask_head.num_params == 233  # as AdelaiDet's checkpoints
    assert cli.trainer.max_steps == 270_000
    optimizer = cli.model.optimizer([{"params": [torch.nn.Parameter(torch.zeros(1))]}])
    assert cli.model.schedule(optimizer, 270_000).milestones == [210_000, 250_000]  # type: ignore[attr-defined]


def test_paper_schedule(tmp_path: Path) -> None:
    cli = build(tmp_path, "--config=condinst_r50.yaml", "--model.network.backbone.width=8")
    assert cli.trainer.max_steps == 90_000
    assert cli.datamodule.batch_size == 16
    optimizer = cli.model.optimizer([{"params": [torch.nn.Parameter(torch.zeros(1))]}])
    assert optimizer.defaults["lr"] == 0.01
    assert optimizer.defaults["momentum"] == 0.9
    assert optimizer.defaults["weight_decay"] == 0.0001
    schedule = cli.model.schedule(optimizer, cli.trainer.max_steps)
    assert isinstance(schedule, WarmupMultiStep)
    assert schedule.milestones == [60_000, 80_000]
    assert (schedule.warmup_steps, schedule.warmup_factor) == (1000, 0.001)


def test_tabletop_over_another(tmp_path: Path) -> None:
    words = ("--config=condinst_odconv_r18.yaml", "--config=tabletop.yaml")
    cli = build(tmp_path, *words, "--model.network.backbone.width=8")
    assert cli.name == "condinst_odconv_r18-tabletop"
    assert parts(cli.model, ODConv2d) == 16
    optimizer = cli.model.optimizer([{"params": [torch.nn.Parameter(torch.zeros(1))]}])
    assert isinstance(cli.model.schedule(optimizer, 1500), WarmupCosine)


def test_rtmdet_over_tabletop(tmp_path: Path) -> None:
    words = ("--config=rtmdet_ins_r50.yaml", "--model.network.backbone.width=8")
    cli = build(tmp_path, *words)
    assert isinstance(cli.model.network.head, RTMDetHead)
    assert cli.model.network.mask_head.num_params == 169
    optimizer = cli.model.optimizer([{"params": [torch.nn.Parameter(torch.zeros(1))]}])
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["lr"] * 256 / cli.datamodule.batch_size == 0.004
    schedule = cli.model.schedule(optimizer, cli.trainer.max_steps)
    assert [schedule.decay(step) for step in (1000, 45_000, 90_000)] == [1, 1, 0.05]
    assert build(tmp_path, *words, "--config=tabletop.yaml").trainer.max_steps == 1500


def test_quickstart(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    cli = build(tmp_path, "--config=quickstart.yaml")
    assert parts(cli.model, ODConv2d) > 0
    callbacks = cli.trainer.callbacks  # type: ignore[attr-defined]
    assert any(isinstance(callback, ExponentialAveraging) for callback in callbacks)


def test_rgbd_is_the_quickstart_with_depth() -> None:
    quickstart, rgbd = (
        yaml.safe_load((tiny.CONFIGS / name).read_text())
        for name in ("quickstart.yaml", "condinst_rgbd.yaml")
    )
    network = rgbd["model"]["network"]
    assert network.pop("depth_channels") > 0
    assert network.pop("mask_filter") == {"class_path": "condseg.layers.DynamicDilatedPyramid2d"}
    assert rgbd == quickstart
