"""What a user types wrong is answered in one line that names it and the nearest right one."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import tiny

from condseg.cli.train import CommandLine, MetricsLogger, find_checkpoint, main, one_line


def complaint(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(tiny.CONFIGS, words)
    assert ended.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0].removeprefix("error: ")


OPTIONS = [
    (
        "--model.network.chanels=3",
        "unknown key model.network.chanels; did you mean model.network.channels?",
    ),
    (
        "--trainer.max_stpes=3",
        "unknown key trainer.max_stpes; did you mean trainer.max_steps?",
    ),
    (
        "--model.network.channels=three",
        "model.network.channels: 'three' is wrong, int is allowed",
    ),
    (
        "--model.network.backbone.norm=bach",
        "model.network.backbone.norm: 'bach' is wrong, Literal['frozen', 'batch'] is allowed",
    ),
    (
        "--model.network.backbone.conv=condseg.layers.ODConv2",
        "model.network.backbone.conv: no class condseg.layers.ODConv2; "
        "did you mean condseg.layers.ODConv2d?",
    ),
    (
        "--model.network.backbone.conv=os.system",
        "model.network.backbone.conv: os.system is not allowed; classes of condseg, torch.nn, "
        "torch.optim and lightning.pytorch are",
    ),
    (
        "--model.optimizer=torch.optim.Adamw",
        "model.optimizer: no class torch.optim.Adamw; did you mean torch.optim.AdamW?",
    ),
    (
        "--model.optimizer=subprocess.Popen",
        "model.optimizer: subprocess.Popen is not allowed; classes of condseg, torch.nn, "
        "torch.optim and lightning.pytorch are",
    ),
    (
        "--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStoping",
        "trainer.callbacks: no class lightning.pytorch.callbacks.EarlyStoping; "
        "did you mean lightning.pytorch.callbacks.EarlyStopping?",
    ),
    (
        "--model.optimizer.init_args.momentun=0.9",
        "unknown key model.optimizer.init_args.momentun; "
        "did you mean model.optimizer.init_args.momentum?",
    ),
    (
        "--model.criterion.soft_labels.top=9",
        "unknown key model.criterion.soft_labels.top; "
        "did you mean model.criterion.soft_labels.topk?",
    ),
    (
        "--model.network.head=rtm",
        "model.network.head: 'rtm' is wrong, Literal['fcos', 'rtmdet'] is allowed",
    ),
]


@pytest.mark.parametrize(("option", "answer"), OPTIONS, ids=[o for o, _ in OPTIONS])
def test_wrong_option(option: str, answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert complaint([option], capsys) == answer


FILES = [
    ("modle: {}", "unknown key modle; did you mean model?"),
    ("modle: {network: {channels: 3}}", "unknown key modle; did you mean model?"),
    (
        "model: {network: {chanels: 3}}",
        "unknown key model.network.chanels; did you mean model.network.channels?",
    ),
    (
        "model: {network: {backbone: {conv: "
        "{class_path: condseg.layers.ODConv2d, init_args: {num_expert: 2}}}}}",
        "unknown key model.network.backbone.conv.init_args.num_expert; "
        "did you mean model.network.backbone.conv.init_args.num_experts?",
    ),
    (
        "model: {schedule: {class_path: condseg.training.schedules.WarmupCosin}}",
        "model.schedule: no class condseg.training.schedules.WarmupCosin; "
        "did you mean condseg.training.schedules.WarmupCosine?",
    ),
    (
        "model: {criterion: {soft_labels: {center_radios: 2}}}",
        "unknown key model.criterion.soft_labels.center_radios; "
        "did you mean model.criterion.soft_labels.center_radius?",
    ),
    ("trainer: {max_stepss: 3}", "unknown key trainer.max_stepss; did you mean trainer.max_steps?"),
    ("- model", "must have keys and values, has list"),
    ("model: [1", "no YAML: while parsing a flow sequence"),
]


@pytest.mark.parametrize(("content", "answer"), FILES, ids=[f for f, _ in FILES])
def test_wrong_file(
    content: str, answer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(content)
    assert answer in complaint([f"--config={path}"], capsys)


def test_unknown_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    said = complaint(["--config", "quickstrat.yaml"], capsys)
    assert said.startswith("no configuration quickstrat.yaml; did you mean quickstart.yaml?")
    assert "condinst_r50.yaml, " in said


def test_without_coco_it_says_the_two_ways_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once: neither weights are fetched nor a network is built."""
    monkeypatch.setattr(
        "condseg.models.backbones.backbone._resnet", lambda *_: pytest.fail("built")
    )
    said = complaint(["--config=condinst_odconv.yaml", f"--data.root={tmp_path / 'coco'}"], capsys)
    assert "tools/download_coco.py" in said
    assert "--config tabletop.yaml" in said


def test_wrong_value_inside_a_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tiny.make_set(tmp_path / "data")
    words = tiny.arguments(data, tmp_path / "runs", "--temperature.start=0.5")
    assert complaint(words, capsys) == "start is 0.5; a temperature of 1 or more is allowed"


def test_order_of_configurations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CommandLine, "instantiate_classes", lambda self: None)
    for name, channels in (("a", 64), ("b", 96)):
        (tmp_path / f"{name}.yaml").write_text(f"model: {{network: {{channels: {channels}}}}}")
    files = [f"--config={tmp_path / name}.yaml" for name in "ab"]
    assert CommandLine(tiny.CONFIGS, []).config.model.network.channels == 256
    assert CommandLine(tiny.CONFIGS, files).config.model.network.channels == 96
    words = [*files, "--model.network.channels=128"]
    assert CommandLine(tiny.CONFIGS, words).config.model.network.channels == 128


def test_unknown_messages_come_in_one_line() -> None:
    assert one_line("something\n  else", []) == "something else"


def test_newest_last(tmp_path: Path) -> None:
    for version in (2, 10, 9):
        folder = tmp_path / f"version_{version}" / "checkpoints"
        folder.mkdir(parents=True)
        (folder / "last.ckpt").touch()
    (tmp_path / "version_11").mkdir()
    assert find_checkpoint("last", tmp_path) == tmp_path / "version_10/checkpoints/last.ckpt"
    assert find_checkpoint(None, tmp_path) is None
    assert find_checkpoint("x.ckpt", tmp_path) == Path("x.ckpt")


def test_metrics_go_on_in_their_file(tmp_path: Path) -> None:
    where = (str(tmp_path), "a", "version_0")
    logger = MetricsLogger(*where)
    for step in range(4):
        logger.log_metrics({"x": float(step)}, step)
    again = MetricsLogger(*where, first_step=2)
    again.log_metrics({"y": 7.0}, 2)
    text = (tmp_path / "a/version_0/metrics.csv").read_text()
    assert text.split() == ["step,x,y", "0,0.0,", "1,1.0,", "2,,7.0"]
