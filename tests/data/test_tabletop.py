"""The sample set of the package, and the tool that rendered it."""

import contextlib
import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path

import cv2
import make_tabletop
import numpy as np
import pytest
from pycocotools.coco import COCO
from support.coco import pycocotools
from tabletop.render import Rendering
from tabletop.styles import STYLES, apply

from condseg.data.files import TABLETOP

TOOL = Path(make_tabletop.__file__)
SIZES = {"train": 336, "val": 48}
CLASSES = ("ball", "bottle", "bowl", "box", "brick", "can", "donut", "mug")

needs_pybullet = pytest.mark.skipif(
    importlib.util.find_spec("pybullet") is None,
    reason="pybullet is not installed (it has no wheel for Python 3.12)",
)


@pytest.fixture(scope="module", params=SIZES)
def split(request):
    return request.param


@pytest.fixture(scope="module")
def coco(split):
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(TABLETOP / f"instances_{split}.json")


def test_counts_classes_and_licence(coco, split):
    assert len(coco.imgs) == SIZES[split]
    assert {c["id"]: c["name"] for c in coco.cats.values()} == dict(enumerate(CLASSES, 1))
    assert coco.dataset["info"]["license"] == coco.dataset["licenses"][0]["name"] == "CC0-1.0"
    assert sorted(coco.anns) == list(range(1, len(coco.anns) + 1))
    assert all(2 <= len(coco.imgToAnns[i]) <= 12 for i in coco.imgs)
    per_class = [len(coco.catToImgs[c]) for c in coco.cats]
    assert min(per_class) > 0.5 * max(per_class)


def test_images_masks_and_depth_agree(coco, split):
    means = []
    for image_id, entry in coco.imgs.items():
        size = (entry["height"], entry["width"])
        image = cv2.imread(str(TABLETOP / split / entry["file_name"]))
        assert image.shape == (*size, 3)
        assert 40 < image.mean() < 210  # well exposed
        assert image.std() > 12
        assert np.mean((image > 250).all(-1)) < 0.1
        means.append(image.mean((0, 1)))
        depth = cv2.imread(str(TABLETOP / entry["depth_file"]), cv2.IMREAD_UNCHANGED)
        assert depth.dtype == np.uint16
        assert depth.shape == size
        assert 100 < depth.min() < depth.max() < 10_000  # measured everywhere
        covered = np.zeros(size, int)
        for annotation in coco.imgToAnns[image_id]:
            mask = coco.annToMask(annotation)
            assert mask.shape == size
            assert mask.sum() == annotation["area"] >= 120
            y, x = np.nonzero(mask)
            box = [x.min(), y.min(), x.max() + 1 - x.min(), y.max() + 1 - y.min()]
            assert annotation["bbox"] == box
            assert annotation["iscrowd"] == 0
            assert 0 < annotation["visibility"] <= 1
            assert np.ptp(depth[y, x].astype(int)) < 250  # mm: no object is longer
            covered += mask
        assert covered.max() == 1
    assert np.std(means, 0).min() > 12  # images differ


def test_objects_occlude_each_other(coco):
    visibility = np.array([a["visibility"] for a in coco.anns.values()])
    assert 0.2 < np.mean(visibility < 0.7) < 0.5
    assert np.mean(visibility > 0.99) > 0.3


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_the_annotations_as_detections_have_ap_1(coco, split, kind):
    results = [a | {"score": 1.0} for a in coco.dataset["annotations"]]
    truth = TABLETOP / f"instances_{split}.json"
    assert pycocotools(truth, results, kind).stats[0] == pytest.approx(1.0)


def test_the_set_is_small_and_all_files_are_in_the_annotations(coco, split):
    sizes = [path.stat().st_size for path in TABLETOP.rglob("*") if path.is_file()]
    assert sum(sizes) < 11_000_000
    assert max(sizes) < 1_000_000
    images = coco.dataset["images"]
    assert {p.name for p in (TABLETOP / split).iterdir()} == {i["file_name"] for i in images}
    depth = {str(p.relative_to(TABLETOP)) for p in (TABLETOP / "depth" / split).iterdir()}
    assert depth == {i["depth_file"] for i in images}


def render(*args):
    command = [sys.executable, str(TOOL), *map(str, args)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """Two training scenes and one of validation, by two processes."""
    out = tmp_path_factory.mktemp("rendered")
    render(out, "--train", 2, "--val", 1, "--workers", 2)
    return out


def files_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.*") if p.is_file()}


@needs_pybullet
@pytest.mark.slow
def test_a_scene_depends_on_its_number_only(rendered, tmp_path):
    render(tmp_path, "--train", 1, "--val", 1)
    again = files_of(tmp_path)
    del again["instances_train.json"]
    assert again.items() <= files_of(rendered).items()
    one, two = (json.loads((f / "instances_train.json").read_text()) for f in (tmp_path, rendered))
    assert one["annotations"] == [a for a in two["annotations"] if a["image_id"] == 0]


@needs_pybullet
@pytest.mark.slow
def test_the_tool_renders_the_set(rendered):
    """The same scenes; pixels may differ by rounding between kinds of processor."""
    folders = (rendered, TABLETOP)
    for name in ("train/000000", "train/000001", "val/000000"):
        new, old = (cv2.imread(f"{f}/{name}.jpg").astype(int) for f in folders)
        assert np.abs(new - old).mean() < 0.5
        new, old = (cv2.imread(f"{f}/depth/{name}.png", -1).astype(int) for f in folders)
        assert np.mean(np.abs(new - old) > 1) < 0.001
    new, old = (json.loads((f / "instances_train.json").read_text()) for f in folders)
    assert new["categories"] == old["categories"]
    assert new["info"] == old["info"]
    kinds = [[a["category_id"] for a in d["annotations"] if a["image_id"] < 2] for d in (new, old)]
    assert kinds[0] == kinds[1]


def test_an_interrupted_set_goes_on(tmp_path, monkeypatch):
    """It becomes the same set, and only the missing scenes are rendered."""
    rendered_scenes = tmp_path / "scenes"

    def fake_scene(seed, split, index, width, height, styles):
        with rendered_scenes.open("a") as file:
            file.write(f"{split} {index}\n")
        masks = list(
            np.arange(width * height).reshape(1, height, width) == np.c_[[index, 9]][..., None]
        )
        image = np.full((height, width, 3), index, np.uint8)
        return Rendering(image, image[..., 0].astype(np.uint16), masks, ["ball", "mug"], [1.0, 0.5])

    monkeypatch.setattr(make_tabletop, "make_scene", fake_scene)
    monkeypatch.setitem(sys.modules, "pybullet", sys)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    make_tabletop.main([str(whole), "--train", "5", "--val", "1"])
    make_tabletop.main([str(parts), "--train", "3", "--val", "0"])
    rendered_scenes.unlink()
    (parts / "train" / "000004.jpg").write_text("an image without its annotations")
    make_tabletop.main([str(parts), "--train", "5", "--val", "1", "--resume"])
    assert rendered_scenes.read_text().splitlines() == ["train 3", "train 4", "val 0"]
    assert files_of(parts) == files_of(whole)
    make_tabletop.main([str(parts), "--train", "2", "--val", "0", "--resume"])
    assert files_of(parts) == files_of(whole)
    for other in (["--seed", "1"], ["--size", "64", "64"], ["--styles", "2"]):
        with pytest.raises(SystemExit) as stop:
            make_tabletop.main([str(parts), "--train", "6", "--val", "1", "--resume", *other])
        assert stop.value.code == 2
    assert files_of(parts) == files_of(whole)


def test_annotations_are_written_while_rendering(tmp_path, monkeypatch):
    def fail_late(seed, split, index, width, height, styles):
        if index == 3:
            raise RuntimeError("interrupted")
        image = np.zeros((height, width, 3), np.uint8)
        return Rendering(
            image, image[..., 0].astype(np.uint16), [image[..., 0] == 0], ["ball"], [1]
        )

    monkeypatch.setattr(make_tabletop, "make_scene", fail_late)
    monkeypatch.setattr(make_tabletop, "CHUNK", 2)
    monkeypatch.setitem(sys.modules, "pybullet", sys)
    with pytest.raises(RuntimeError, match="interrupted"):
        make_tabletop.main([str(tmp_path), "--train", "5"])
    content = json.loads((tmp_path / "instances_train.json").read_text())
    assert [image["id"] for image in content["images"]] == [0, 1]
    assert [a["image_id"] for a in content["annotations"]] == [0, 1]


def test_styles_differ_and_the_first_is_plain():
    image = cv2.imread(str(TABLETOP / "val" / "000000.jpg"))[..., ::-1]
    depth = cv2.imread(str(TABLETOP / "depth" / "val" / "000000.png"), cv2.IMREAD_UNCHANGED)
    styled = [apply(k, image, depth, np.random.default_rng(0)) for k in range(len(STYLES))]
    assert styled[0] is image
    for k, one in enumerate(styled):
        assert (one.shape, one.dtype) == (image.shape, np.uint8)
        assert one.std() > 8  # something is seen
        for other in styled[:k]:
            assert np.abs(one.astype(int) - other).mean() > 4


@needs_pybullet
@pytest.mark.slow
def test_scenes_of_all_styles_have_the_same_annotations(tmp_path):
    for styles in (1, 2):
        render(tmp_path / str(styles), "--train", 2, "--val", 0, "--styles", styles)
    one, two = (json.loads((tmp_path / n / "instances_train.json").read_text()) for n in "12")
    assert one["annotations"] == two["annotations"]
    (plain, first), (other, second) = (
        [(tmp_path / n / "train" / f"{name}.jpg").read_bytes() for n in "12"]
        for name in ("000000", "000001")
    )
    assert plain == first
    assert other != second


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--train", "-1"], "--train -1: must be 0"),
        (["--quality", "101"], "--quality 101: must be 1 to 100"),
        (["--size", "32", "240"], "--size 32 240: both must be 64 or more"),
        (["--styles", "9"], "--styles 9: must be 1 to 8"),
        (["--workers", "0"], "--workers 0: must be 1"),
        ([], "pip install pybullet"),
    ],
)
def test_wrong_options_and_a_missing_package(tmp_path, monkeypatch, capsys, args, message):
    monkeypatch.setitem(sys.modules, "pybullet", None)
    with pytest.raises(SystemExit) as stop:
        make_tabletop.main([str(tmp_path / "out"), *args])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
