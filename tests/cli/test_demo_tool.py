"""tools/demo.py: condseg.cli.predict."""

import io
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import foreign, tiny
from support.loopback import serving, use_hub

from condseg.cli.predict import main
from condseg.data.dataset import CocoDataset
from condseg.data.images import read_image
from condseg.inference import SCORE_THRESHOLD
from condseg.inference.annotate import output_paths
from condseg.inference.sources import Source, find_inputs
from condseg.training.callbacks import ValidationImages
from condseg.zoo.registry import DEFAULT_MODEL, MODELS


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a run and images, two of the same name."""
    monkeypatch.chdir(tmp_path)
    use_hub(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")  # no server there
    tiny.write_checkpoint(Path("runs/tabletop/version_0/checkpoints/best.ckpt"))
    for name in ("a/x.jpg", "b/x.jpg", "b/y.png", "b/[1].png"):
        Path(name).parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(name)
    Path("b/notes.txt").write_text("no image")
    Path("broken.jpg").write_bytes(b"\xff\xd8\xff")
    return tmp_path


def test_files_folders_and_patterns(folder, capsys):
    assert main(["a/x.jpg", "b", "b/*", "b/[1].png", "--score", "0.01", "--json"]) == 0
    printed = capsys.readouterr()
    out = printed.out
    run = "runs/tabletop/version_0/checkpoints/best.ckpt"
    assert out.startswith(f"checkpoint {run}: 3 classes, trained on tabletop, 70 steps\n")
    assert out.count(" -> ") == 4
    assert "4 images in " in out
    assert " images/s)" in out
    assert printed.err == "skipped 1 file that is neither image nor video: 1 .txt\n"
    assert "box (" in out or "disc (" in out
    drawn = sorted(path.name for path in Path("out").iterdir())
    assert drawn == ["[1].png", "detections.json", "x.jpg", "x_2.jpg", "y.png"]
    assert read_image("out/x.jpg").shape == (160, 240, 3)
    content = json.loads(Path("out/detections.json").read_text())
    assert [image["id"] for image in content["images"]] == [1, 2, 3, 4]
    record = content["annotations"][0]
    assert record["segmentation"]["size"] == [40, 60]
    assert record["category_id"] in {3, 7, 40}


def test_options_of_nms_masks_and_colors(folder, monkeypatch):
    seen = []
    monkeypatch.setattr("condseg.inference.annotate.annotate", lambda *a: seen.append(a) or 0)
    main(["a/x.jpg"])
    main(["a/x.jpg", "--class_agnostic_nms", "--drop_islands", "--color_by", "class"])
    options = [(a[0].postprocess.class_agnostic_nms, a[0].postprocess.keep_islands) for a in seen]
    assert options == [(False, True), (True, False)]
    assert [a[7] for a in seen] == [None, "class"]
    assert [a[3] for a in seen] == [SCORE_THRESHOLD] * 2 == [ValidationImages().score] * 2


def test_an_unreadable_image_is_reported_and_the_others_are_processed(folder, capsys):
    assert main(["broken.jpg", "absent*", "a/x.jpg", "--score", "0.9"]) == 1
    printed = capsys.readouterr()
    assert "broken.jpg: cannot be read" in printed.err
    assert "no images in 'absent*'" in printed.err
    assert "nothing reaches --score 0.9; the best is " in printed.out
    assert Path("out/x.jpg").is_file()


def test_a_file_that_is_not_drawn_is_reported_and_the_others_are_processed(folder, capsys):
    """An image of extreme aspect is enlarged only as far as a JPEG may be."""
    for name, size in (("thin.jpg", (10, 40000)), ("wide.jpg", (3, 70000)), ("c.jpg", (40, 60))):
        kind = "PNG" if name == "wide.jpg" else "JPEG"
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(name, kind)
    assert main(["thin.jpg", "wide.jpg", "c.jpg"]) == 1
    printed = capsys.readouterr()
    assert "error: out/wide.jpg: cannot be written: " in printed.err
    assert read_image("out/thin.jpg").shape == (10, 40000, 3)
    assert Path("out/c.jpg").is_file()


def test_a_file_name_that_is_not_utf_8(folder, capsys):
    name = os.fsdecode(b"b/\xff.png")
    Path("b/y.png").rename(name)
    assert main([name, "--json"]) == 0
    assert "b/\\udcff.png: " in capsys.readouterr().out
    content = Path("out/detections.json").read_text(encoding="utf-8")
    assert json.loads(content)["images"][0]["file_name"] == name


def test_no_input_is_overwritten(folder):
    before = Path("a/x.jpg").read_bytes()
    assert main(["a/x.jpg", "--output", "a"]) == 0
    assert Path("a/x.jpg").read_bytes() == before
    assert Path("a/x_2.jpg").is_file()
    files = ("o/x.jpg", "p/x.jpg", "o/x_2.jpg", "p/x.png", "p/y.tar.mp4", "q/y.tar.jfif", "q/z")
    paths = output_paths([Source(Path(file)) for file in files], Path("o"))
    names = ["x_3.jpg", "x_4.jpg", "x_2_2.jpg", "x_5.png", "y.tar.mp4", "y.tar_2.jpg", "z.png"]
    assert [path.name for path in paths] == names


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["absent.jpg"], "no images in 'absent.jpg'"),
        (["a/x.jpg", "--score", "40"], "score is 40"),
        (["a/x.jpg", "--device", "gpu"], "device is 'gpu'"),
        (["a/x.jpg", "--checkpoint", "b/notes.txt"], "b/notes.txt"),
        (["a/x.jpg", "--model", "condinst_r101_3x", "--offline"], "condinst_r101_3x is not in "),
    ],
)
def test_a_users_error_is_one_line_and_code_2(folder, capsys, args, message):
    assert message in tiny.error(main, args, capsys)


def test_without_a_checkpoint_the_message_says_how_to_get_one(folder, monkeypatch, capsys):
    Path("runs").rename("elsewhere")
    nowhere = replace(MODELS[DEFAULT_MODEL], folder="http://127.0.0.1:9")
    monkeypatch.setitem(MODELS, DEFAULT_MODEL, nowhere)
    message = tiny.error(main, ["a/x.jpg"], capsys)
    assert "rtmdet_ins_m is not available: http://127.0.0.1:9" in message
    assert "condseg train --config quickstart" in message


def test_a_published_model_by_its_name(folder, monkeypatch, capsys):
    args = ["a/x.jpg", "--model", "condinst_r50_1x", "--score", "0.01"]
    with serving() as server:
        file = "/hub/tianzhi/AdelaiDet-CondInst/resolve/main/CondInst_MS_R_50_1x.pth"
        torch.save(foreign.adelaidet(foreign.small_network()), "made_up.pth")
        server.files[file] = Path("made_up.pth").read_bytes()
        use_hub(monkeypatch, server.url, folder / "cache")
        assert main(args) == 0
    assert main([*args, "--offline"]) == 0
    printed = capsys.readouterr()
    assert printed.err.count("condinst_r50_1x: weights of AdelaiDet, for non-commercial") == 1
    assert printed.out.count(" -> out/x.jpg") == 2


def test_each_image_once(folder):
    found = find_inputs(["a/x.jpg", "./a/x.jpg", "**/x.jpg", "nowhere/"])
    assert [source.location for source in found.sources] == [Path("a/x.jpg"), Path("b/x.jpg")]
    assert found.without == ["nowhere/"]
    assert not found.skipped


def test_an_address_and_paths_on_stdin(folder, monkeypatch, capsys):
    with serving() as server:
        server.files["/photos/x.jpg"] = Path("a/x.jpg").read_bytes()
        lines = f"b/[1].png\n\n{server.url}/photos/x.jpg\n{server.url}/absent.png\n"
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        assert main(["a/x.jpg", "-", "--score", "0.01", "--json"]) == 1
    printed = capsys.readouterr()
    assert printed.out.count(" -> ") == 3
    assert f"{server.url}/photos/x.jpg: " in printed.out
    assert printed.err.count("\n") == printed.err.count(f"error: {server.url}/absent.png") == 1
    assert sorted(path.name for path in Path("out").glob("*g")) == ["[1].png", "x.jpg", "x_2.jpg"]
    files = [
        image["file_name"]
        for image in json.loads(Path("out/detections.json").read_text())["images"]
    ]
    assert files == ["a/x.jpg", "b/[1].png", f"{server.url}/photos/x.jpg"]


def test_formats(folder):
    args = ["a/x.jpg", "b/x.jpg", "--score", "0.01", "--format", "coco", "labelme", "labelstudio"]
    assert main([*args, "--json"]) == 0
    written = sorted(str(path.relative_to("out")) for path in Path("out").rglob("*.json"))
    files = ["detections.json", "instances.json", "labelme/x.json", "labelme/x_2.json"]
    assert written == [*files, "labelstudio.json"]
    dataset = CocoDataset("out/instances.json", ".")
    assert len(dataset) == 2
    assert len(dataset[0].targets.labels) > 0


def test_a_format_does_not_apply(folder, capsys):
    Path("c.mp4").touch()
    cases = {
        ("a/x.jpg", "--color_by", "track"): "color_by is 'track'",
        ("c.mp4", "--format", "labelme"): "c.mp4: --format labelme of a video needs --save_frames",
    }
    for args, message in cases.items():
        assert message in tiny.error(main, list(args), capsys)
