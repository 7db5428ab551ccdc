"""Depth through the commands: training, evaluation, drawing, inspection."""

from __future__ import annotations

import contextlib
import io
import json
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import tiny

from condseg.cli import eval, predict, train
from condseg.data.files import TABLETOP
from condseg.inference.predictor import Predictor

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")
DEPTH = (
    "--model.network.depth_channels=4",
    "--model.network.mask_filter=condseg.layers.DynamicDilatedPyramid2d",
    "--progress.refresh_rate=0",
)


def add_depth(root: Path) -> Path:
    """Adds a depth map for each image: bright pixels are near. The first object is half hidden."""
    for split in ("train", "val"):
        file = root / f"instances_{split}.json"
        content = json.loads(file.read_text())
        for image in content["images"]:
            pixels = np.asarray(Image.open(root / split / image["file_name"]))
            image["depth_file"] = f"depth/{split}/{image['file_name']}"
            path = root / image["depth_file"]
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.where(pixels.max(2) > 100, 700, 1000).astype(np.uint16)).save(path)
        for number, annotation in enumerate(content["annotations"]):
            annotation["visibility"] = 0.5 if number == 0 else 1.0
        file.write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Checkpoint and data set of a short training."""
    folder = tmp_path_factory.mktemp("rgbd")
    root = add_depth(tiny.make_set(folder / "data"))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        cli = train.main(tiny.arguments(root, folder / "runs", *DEPTH))
    assert f"{root}/val/000.png --depth {root}/depth/val/000.png" in printed.getvalue()
    losses = tiny.losses(folder / "runs")
    assert len(losses) == 6
    assert all(np.isfinite(list(row.values())).all() for row in losses.values())
    return str(cli.run_folder / "checkpoints/best.ckpt"), root


def test_evaluation_reads_the_depth_of_the_set(trained: tuple[str, Path], tmp_path: Path) -> None:
    checkpoint, root = trained
    args = ["--checkpoint", checkpoint, "--data", str(root), "--workers", "0", "--device", "cpu"]
    eval.main([*args, "--output", str(tmp_path), "--visibility", "0", "0.6"])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["images"], summary["objects"]["all"]) == (5, 1)
    assert summary["visibility"] == [0, 0.6]
    assert "only the 1 of 7 objects" in summary["notes"][0]


def test_drawing_with_depth(
    trained: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, root = trained
    common = ["--checkpoint", checkpoint, "--device", "cpu", "--output", str(tmp_path)]
    images, depths = str(root / "val"), str(root / "depth/val")
    one, depth = f"{images}/000.png", f"{depths}/000.png"
    assert predict.main([images, "--depth", depths, *common]) == 0
    assert len(list(tmp_path.iterdir())) == 5
    assert predict.main([one, "--depth", depth, *common]) == 0
    stray = str(tmp_path / "stray.png")
    Image.new("RGB", (64, 64)).save(stray)
    capsys.readouterr()
    assert predict.main([one, stray, "--depth", depths, *common]) == 1
    assert f"{stray}: {depths}/stray.png: no such depth map" in capsys.readouterr().err
    for args, message in (
        ([one], "network takes depth; --depth is needed"),
        ([images, "--depth", depth], "have the same depth map"),
        ([one, str(root / "train/000.png"), "--depth", depths], "have the same depth map"),
    ):
        assert message in tiny.error(predict.main, [*args, *common], capsys)


def test_depth_for_a_checkpoint_without_depth(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = str(tiny.write_checkpoint(tmp_path / "a.ckpt"))
    image, depth = str(TABLETOP / "val/000000.jpg"), str(TABLETOP / "depth/val")
    args = [image, "--depth", depth, "--checkpoint", checkpoint, "--device", "cpu"]
    assert "the checkpoint's network takes none" in tiny.error(predict.main, args, capsys)


def test_inspection_and_python(
    trained: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, root = trained
    images, depths = str(root / "val"), str(root / "depth/val")
    args = [images, "--depth", depths, "--figures", "1", "--checkpoint", checkpoint]
    args += ["--device", "cpu", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["inspect_layers.py", *args])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(tiny.REPOSITORY / "tools/inspect_layers.py"), run_name="__main__")
    assert (tmp_path / "pixels_000_000.png").is_file()
    predictor = Predictor.from_checkpoint(checkpoint, "cpu")
    image, depth = np.zeros((50, 70, 3), np.uint8), np.full((50, 70), 900, np.uint16)
    assert predictor(image, depth).masks.shape[1:] == (50, 70)
    with pytest.raises(ValueError, match=r"depth is uint16 of shape \(49, 70\); .* \(50, 70\)"):
        predictor(image, depth[1:])
    with pytest.raises(ValueError, match="takes depth"):
        predictor(image)


def test_training_needs_the_depth_of_every_image(
    trained: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(trained[1], tmp_path / "data")
    file = root / "instances_train.json"
    content = json.loads(file.read_text())
    content["images"][3].pop("depth_file")
    file.write_text(json.dumps(content))
    message = tiny.error(train.main, tiny.arguments(root, tmp_path / "runs", *DEPTH), capsys)
    assert "1 of 8 images have no depth_file: image 103 (003.png)" in message
