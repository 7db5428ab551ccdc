"""Errors in one line with the nearest valid name; which configuration overrides which."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import pytest
import yaml
from support import tiny

from condseg.cli.messages import one_line, silence_irrelevant_warnings
from condseg.cli.train import CommandLine, main


def error(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    return tiny.error(main, args, capsys)


ODCONV = "{class_path: condseg.layers.ODConv2d, init_args: {num_expert: 2}}"
WRONG = {
    "--model.network.chanels=3": "unknown key model.network.chanels; "
    "did you mean model.network.channels?",
    "--model.network.channels=three": "model.network.channels: Expected a <class 'int'>. "
    "Got value: three",
    "--model.network.backbone.norm=bach": "model.network.backbone.norm: "
    "Expected a typing.Literal['frozen', 'batch']. Got value: bach",
    "--model.network.backbone.conv=condseg.layers.ODConv2": "model.network.backbone.conv: "
    "module 'condseg.layers' has no attribute 'ODConv2'; did you mean ODConv2d?",
    "--model.optimizer=torch.optim.Adamw": "model.optimizer: "
    "module 'torch.optim' has no attribute 'Adamw'; did you mean AdamW?",
    "--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStoping": "trainer.callbacks: module "
    "'lightning.pytorch.callbacks' has no attribute 'EarlyStoping'; did you mean EarlyStopping?",
    "--model.optimizer=subprocess.Popen": "model.optimizer: subprocess.Popen is not allowed; "
    "classes of condseg, torch.nn, torch.optim, lightning.pytorch are",
    "--model.network.backbone.conv=os.system": "model.network.backbone.conv: os.system is not "
    "allowed; classes of condseg, torch.nn, torch.optim, lightning.pytorch are",
    "--model.network.head.init_args.towers=3": "model.network.head: "
    "condseg.models.FCOSHead has no argument towers; did you mean tower_convs?",
    "modle: {}": "modle; did you mean model?",
    "model: {network: {chanels: 3}}": "unknown key model.network.chanels; "
    "did you mean model.network.channels?",
    f"model: {{network: {{backbone: {{conv: {ODCONV}}}}}}}": "model.network.backbone.conv: "
    "condseg.layers.ODConv2d has no argument num_expert; did you mean num_experts?",
    "- model": "must have keys and values, has list",
    "model: [1": "no YAML: while parsing a flow sequence",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_option_or_file(
    wrong: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(wrong)
    message = error([wrong if wrong.startswith("--") else f"--config={path}"], capsys)
    assert WRONG[wrong] in message


def test_any_message_becomes_one_line() -> None:
    assert one_line("something\n  else", []) == "something else"


def test_unknown_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    message = error(["--config", "quickstrat.yaml"], capsys)
    assert message.startswith("no configuration quickstrat.yaml; did you mean quickstart.yaml?")
    assert "condinst_r50.yaml, " in message
    assert error(["--config=xyz"], capsys).startswith("no configuration xyz; There are ")


def test_missing_coco_is_reported_before_the_network_is_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    resnet = "condseg.models.backbones.backbone.resnet"
    monkeypatch.setattr(resnet, lambda *_: pytest.fail("built"))
    message = error(["--config=condinst_odconv.yaml", f"--data.root={tmp_path / 'coco'}"], capsys)
    assert "condseg download" in message
    assert "--config tabletop" in message


def test_wrong_value_of_a_constructor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tiny.make_set(tmp_path / "data")
    args = tiny.arguments(data, tmp_path / "runs", "--temperature.start=0.5")
    assert error(args, capsys) == "start is 0.5; a temperature of 1 or more is allowed"


def test_which_configuration_overrides_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """default.yaml < network of --init_from < --config a < --config b < options."""
    default = yaml.safe_load((tiny.CONFIGS / "default.yaml").read_text())
    default["model"]["network"] = {"channels": 32, "mask_features": 4}
    (tmp_path / "default.yaml").write_text(yaml.safe_dump(default))
    monkeypatch.setattr("condseg.cli.arguments.CONFIGS", tmp_path)
    monkeypatch.setattr(CommandLine, "before_instantiate_classes", lambda self: None)
    monkeypatch.setattr(CommandLine, "instantiate_classes", lambda self: None)
    for name, channels in (("a", 96), ("b", 160)):
        (tmp_path / f"{name}.yaml").write_text(f"model: {{network: {{channels: {channels}}}}}")
    start = f"--init_from={tiny.write_checkpoint(tmp_path / 'start.ckpt')}"
    a, b = (f"--config={tmp_path / name}.yaml" for name in "ab")
    expected = {
        (): 32,
        (start,): 64,
        (start, a): 96,
        (start, a, b): 160,
        (start, b, a): 96,
        (start, a, b, "--model.network.channels=128"): 128,
    }
    for args, channels in expected.items():
        network = CommandLine(list(args)).config.model.network
        assert (network.channels, network.mask_features) == (channels, 4)


def test_the_start_overrides_class_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CommandLine, "before_instantiate_classes", lambda self: None)
    monkeypatch.setattr(CommandLine, "instantiate_classes", lambda self: None)
    conv = {"class_path": "condseg.layers.ODConv2d", "init_args": {"num_experts": 3}}
    path = tiny.write_checkpoint(tmp_path / "start.ckpt", backbone=tiny.BACKBONE | {"conv": conv})
    option = "--model.network.backbone.conv.init_args.reduction=0.5"
    backbone = CommandLine([f"--init_from={path}", option]).config.model.network.backbone
    assert backbone.conv.class_path.endswith("ODConv2d")
    assert (backbone.conv.init_args.num_experts, backbone.conv.init_args.reduction) == (3, 0.5)
    assert backbone.weights is None


def test_what_no_user_can_act_on_is_hidden(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    filters = list(log.filters)
    with warnings.catch_warnings(record=True) as shown, caplog.at_level("INFO"):
        silence_irrelevant_warnings()
        for name in ("val/mask_AP", "val_mask_AP/cup"):
            warnings.warn(
                f"recommended to use `self.log('{name}', ..., sync_dist=True)`", stacklevel=1
            )
        for line in ("GPU available: False, used: False", "TPU available: False", "Tip: x"):
            log.info(line)
    log.filters = filters
    assert shown == []
    assert caplog.messages == ["GPU available: False, used: False"]
