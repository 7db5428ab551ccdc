"""Depth as a user has it: train, evaluate, draw, look inside."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import tiny

from condseg.cli.train import main
from condseg.data.files import TABLETOP
from condseg.inference.predictor import Predictor

# pycocotools' own decode under NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

DEPTH = (
    "--model.network.depth_channels=4",
    "--model.network.mask_filter=condseg.layers.DynamicDilatedPyramid2d",
)


def add_depth(root: Path) -> Path:
    """A depth map for each picture: what is bright is near. The first object is half hidden."""
    for split in ("train", "val"):
        file = root / f"instances_{split}.json"
        content = json.loads(file.read_text())
        for image in content["images"]:
            picture = np.asarray(Image.open(root / split / image["file_name"]))
            image["depth_file"] = f"depth/{split}/{image['file_name']}"
            path = root / image["depth_file"]
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.where(picture.max(2) > 100, 700, 1000).astype(np.uint16)).save(path)
        for number, annotation in enumerate(content["annotations"]):
            annotation["visibility"] = 0.5 if number == 0 else 1.0
        file.write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """Checkpoint and set of a short training, and what it printed."""
    place = tmp_path_factory.mktemp("rgbd")
    root = add_depth(tiny.make_set(place / "data"))
    done = tiny.train(tiny.arguments(root, place / "runs", *DEPTH))
    assert done.returncode == 0, done.stderr
    losses = tiny.losses(place / "runs")
    assert len(losses) == 6
    assert all(np.isfinite(list(row.values())).all() for row in losses.values())
    return place / "runs/tiny/version_0/checkpoints/best.ckpt", root, done.stdout


def run(monkeypatch: pytest.MonkeyPatch, tool: str, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", [tool, *map(str, words)])
    try:
        runpy.run_path(str(tiny.REPOSITORY / "tools" / tool), run_name="__main__")
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_the_training_says_how_to_draw_with_depth(trained: tuple[Path, Path, str]) -> None:
    _, root, printed = trained
    assert f"{root}/val/0.png --depth {root}/depth/val/0.png" in printed


def test_evaluation_takes_depth_from_the_set(
    trained: tuple[Path, Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, root, _ = trained
    words = ["--checkpoint", checkpoint, "--data", root, "--workers", 0, "--device", "cpu"]
    words += ["--output", tmp_path]
    assert run(monkeypatch, "eval.py", *words, "--visibility", 0, 0.6) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["images"], summary["objects"]["all"]) == (5, 1)
    assert summary["visibility"] == [0, 0.6]
    assert "only the 1 of 7 objects" in summary["notes"][0]


def test_drawing_takes_a_file_or_a_folder(
    trained: tuple[Path, Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint, root, _ = trained
    common = ("--checkpoint", checkpoint, "--device", "cpu", "--output", tmp_path)
    depths = root / "depth" / "val"
    assert run(monkeypatch, "demo.py", root / "val", "--depth", depths, *common) == 0
    assert len(list(tmp_path.iterdir())) == 5
    one = root / "val" / "0.png"
    assert run(monkeypatch, "demo.py", one, "--depth", depths / "0.png", *common) == 0
    capsys.readouterr()
    Image.new("RGB", (64, 64)).save(tmp_path / "stray.png")
    stray = tmp_path / "stray.png"
    assert run(monkeypatch, "demo.py", one, stray, "--depth", depths, *common) == 1
    assert f"{stray}: {depths / 'stray.png'}: no such depth map" in capsys.readouterr().err
    for words, says in (
        ((one,), "network takes depth; --depth is needed"),
        ((root / "val", "--depth", depths / "0.png"), "have the same depth map"),
        ((one, root / "train" / "0.png", "--depth", depths), "have the same depth map"),
    ):
        assert run(monkeypatch, "demo.py", *words, *common) == 2
        assert says in capsys.readouterr().err


def test_a_checkpoint_without_depth_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from support.tiny_model import write_checkpoint

    checkpoint = write_checkpoint(tmp_path / "a.ckpt")
    picture, depth = TABLETOP / "val/000000.jpg", TABLETOP / "depth/val"
    words = (picture, "--depth", depth, "--checkpoint", checkpoint, "--device", "cpu")
    assert run(monkeypatch, "demo.py", *words) == 2
    assert "the checkpoint's network takes none" in capsys.readouterr().err


def test_looking_inside_and_one_picture_from_python(
    trained: tuple[Path, Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, root, _ = trained
    common = ("--checkpoint", checkpoint, "--device", "cpu", "--output", tmp_path)
    words = (root / "val", "--depth", root / "depth/val", "--figures", 1)
    assert run(monkeypatch, "inspect_layers.py", *words, *common) == 0
    assert (tmp_path / "pixels_000_0.png").is_file()
    predictor = Predictor.from_checkpoint(checkpoint, "cpu")
    image, depth = np.zeros((50, 70, 3), np.uint8), np.full((50, 70), 900, np.uint16)
    assert predictor(image, depth).masks.shape[1:] == (50, 70)
    with pytest.raises(ValueError, match=r"depth is uint16 of shape \(49, 70\); .* \(50, 70\)"):
        predictor(image, depth[1:])
    with pytest.raises(ValueError, match="takes depth"):
        predictor(image)


def test_training_stops_where_some_pictures_have_no_depth(
    trained: tuple[Path, Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(trained[1], tmp_path / "data")
    file = root / "instances_train.json"
    content = json.loads(file.read_text())
    content["images"][3].pop("depth_file")
    file.write_text(json.dumps(content))
    with pytest.raises(SystemExit) as stop:
        main(tiny.arguments(root, tmp_path / "runs", *DEPTH))
    assert stop.value.code == 2
    assert "1 of 8 pictures have no depth_file: image 4 (3.png)" in capsys.readouterr().err
