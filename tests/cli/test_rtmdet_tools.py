"""RTMDet-Ins's head through the tools: trained, evaluated and drawn as any other model."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from support.tiny import REPOSITORY, arguments, losses, make_set

from condseg.cli.train import CommandLine
from condseg.models.heads.rtmdet import RTMDetHead
from condseg.zoo.checkpoint import restore

# Tiny sets are read in the process itself; pycocotools' own decode under NumPy 2.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


def tool(monkeypatch: pytest.MonkeyPatch, name: str, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
    runpy.run_path(str(REPOSITORY / "tools" / name), run_name="__main__")


def test_train_eval_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_set(tmp_path / "data")  # a third of its pictures have no objects
    words = ("head=rtmdet", "num_levels=3")
    cli = CommandLine(
        arguments(
            data,
            tmp_path / "runs",
            "--progress.refresh_rate=0",
            "--model.criterion.soft_labels.topk=9",
            "--model.postprocess.score_threshold=0.001",  # after six steps all are about 0.01
            *(f"--model.network.{word}" for word in words),
        ),
    )
    assert cli.model.criterion.soft_labels.topk == 9
    cli.fit()
    names = {f"train/{name}" for name in ("loss", "loss_cls", "loss_box", "loss_mask", "lr")}
    assert set(losses(tmp_path / "runs")[5]) == names

    checkpoint = cli.run_folder / "checkpoints" / "last.ckpt"
    network = restore(checkpoint).network
    assert isinstance(network.head, RTMDetHead)
    assert network.strides == (8, 16, 32)

    monkeypatch.chdir(tmp_path)
    common = ("--checkpoint", checkpoint, "--device", "cpu")
    tool(monkeypatch, "eval.py", *common, "--workers", 0, "--output", tmp_path / "eval")
    assert "mask/AP" in json.loads((tmp_path / "eval" / "summary.json").read_text())["metrics"]
    with pytest.raises(SystemExit) as stop:
        tool(monkeypatch, "demo.py", data / "val", *common, "--score", 0.001, "--json")
    assert stop.value.code == 0
    found = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert len(found["images"]) == 5
    assert found["annotations"]
