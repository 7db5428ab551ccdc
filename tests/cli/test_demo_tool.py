"""tools/demo.py as a user calls it."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import foreign
from support.loopback import serving
from support.tiny_model import write_checkpoint

from condseg.data.images import read_image
from condseg.inference.annotate import find_pictures, output_paths

TOOL = Path(__file__).parents[2] / "tools" / "demo.py"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to work in, with a run in it and pictures of the same name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody answers there
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_checkpoint(Path("runs/tabletop/version_0/checkpoints/best.ckpt"))
    for name in ("a/x.jpg", "b/x.jpg", "b/y.png", "b/[1].png"):
        Path(name).parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(name)
    Path("b/notes.txt").write_text("no picture")
    Path("broken.jpg").write_bytes(b"\xff\xd8\xff")
    return tmp_path


def run(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", [str(TOOL), *args])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(TOOL), run_name="__main__")
    return stop.value.code


def test_files_folders_and_patterns(place, monkeypatch, capsys):
    code = run(monkeypatch, "a/x.jpg", "b", "b/*", "b/[1].png", "--score", "0.01", "--json")
    assert code == 0
    out = capsys.readouterr().out
    assert out.count(" -> ") == 4
    assert "fork (" in out or "cup (" in out
    drawn = sorted(path.name for path in Path("out").iterdir())
    assert drawn == ["[1].png", "detections.json", "x.jpg", "x_2.jpg", "y.png"]
    assert read_image("out/x.jpg").shape == (160, 240, 3)
    content = json.loads(Path("out/detections.json").read_text())
    assert [image["id"] for image in content["images"]] == [1, 2, 3, 4]
    record = content["annotations"][0]
    assert record["segmentation"]["size"] == [40, 60]
    assert record["category_id"] in {2, 5, 40}


def test_an_unreadable_picture_is_told_and_the_others_are_done(place, monkeypatch, capsys):
    assert run(monkeypatch, "broken.jpg", "absent*", "a/x.jpg", "--score", "0.9") == 1
    printed = capsys.readouterr()
    assert "broken.jpg: cannot be read" in printed.err
    assert "no pictures in 'absent*'" in printed.err
    assert "nothing reaches --score 0.9; the best is " in printed.out
    assert Path("out/x.jpg").is_file()


def test_no_input_is_overwritten(place, monkeypatch):
    before = Path("a/x.jpg").read_bytes()
    assert run(monkeypatch, "a/x.jpg", "--output", "a") == 0
    assert Path("a/x.jpg").read_bytes() == before
    assert Path("a/x_2.jpg").is_file()
    paths = output_paths([Path("o/x.jpg"), Path("p/x.jpg"), Path("o/x_2.jpg")], Path("o"))
    assert [path.name for path in paths] == ["x_3.jpg", "x_4.jpg", "x_2_2.jpg"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["absent.jpg"], "no pictures in 'absent.jpg'"),
        (["a/x.jpg", "--score", "40"], "score is 40"),
        (["a/x.jpg", "--device", "gpu"], "device is 'gpu'"),
        (["a/x.jpg", "--checkpoint", "b/notes.txt"], "b/notes.txt"),
    ],
)
def test_a_users_error_is_one_line_and_code_2(place, monkeypatch, capsys, args, said):
    assert run(monkeypatch, *args) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1


def test_without_any_checkpoint_it_fetches_or_says_how_to_get_one(place, monkeypatch, capsys):
    Path("runs").rename("elsewhere")
    assert run(monkeypatch, "a/x.jpg") == 2
    said = capsys.readouterr().err
    assert "for non-commercial use only" in said
    assert "condinst_r50_3x cannot be had: http://127.0.0.1:9" in said
    assert "tools/train.py --config quickstart.yaml" in said
    assert run(monkeypatch, "a/x.jpg", "--model", "condinst_r101_3x", "--offline") == 2
    assert "condinst_r101_3x is not in the cache" in capsys.readouterr().err


def test_a_published_model_by_its_name(place, monkeypatch, capsys):
    with serving() as server:
        file = "/hub/tianzhi/AdelaiDet-CondInst/resolve/main/CondInst_MS_R_50_1x.pth"
        torch.save(foreign.adelaidet(foreign.small_network()), "made_up.pth")
        server.files[file] = Path("made_up.pth").read_bytes()
        monkeypatch.setenv("HF_ENDPOINT", f"{server.url}/hub")
        words = ["a/x.jpg", "--model", "condinst_r50_1x", "--score", "0.01"]
        assert run(monkeypatch, *words) == 0
    assert run(monkeypatch, *words, "--offline") == 0
    printed = capsys.readouterr()
    assert printed.err.count("condinst_r50_1x: weights of AdelaiDet, for non-commercial") == 1
    assert printed.out.count(" -> out/x.jpg") == 2


def test_each_picture_once(place):
    found, without = find_pictures(["a/x.jpg", "./a/x.jpg", "**/x.jpg", "nowhere/"])
    assert found == [Path("a/x.jpg"), Path("b/x.jpg")]
    assert without == ["nowhere/"]
