"""The sample set that comes with the package, and the program that made it."""

import contextlib
import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

ROOT = Path(__file__).parents[2]
TABLETOP = ROOT / "condseg" / "data" / "tabletop"
TOOL = ROOT / "tools" / "make_tabletop.py"
SIZES = {"train": 336, "val": 48}
CLASSES = ("ball", "bottle", "bowl", "box", "brick", "can", "donut", "mug")

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

drawing = pytest.mark.skipif(
    importlib.util.find_spec("pybullet") is None,
    reason="pybullet draws the scenes; it is not installed (it has no wheel for Python 3.12)",
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


def test_masks_fit_the_picture_and_do_not_overlap(coco, split):
    for image_id, image in coco.imgs.items():
        size = (image["height"], image["width"])
        assert cv2.imread(str(TABLETOP / split / image["file_name"])).shape == (*size, 3)
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
            covered += mask
        assert covered.max() == 1


def test_depth_is_there_and_belongs_to_the_things(coco, split):
    """Every pixel has a depth, and a thing no more of it than its own length."""
    for image_id, image in coco.imgs.items():
        depth = cv2.imread(str(TABLETOP / image["depth_file"]), cv2.IMREAD_UNCHANGED)
        assert depth.dtype == np.uint16
        assert depth.shape == (image["height"], image["width"])
        assert 100 < depth.min() < depth.max() < 10_000
        for annotation in coco.imgToAnns[image_id]:
            inside = depth[coco.annToMask(annotation) > 0].astype(int)
            assert np.ptp(inside) < 250  # millimetres: no thing is longer than a bottle


def test_things_hide_each_other(coco):
    visibility = np.array([a["visibility"] for a in coco.anns.values()])
    assert 0.2 < np.mean(visibility < 0.7) < 0.5
    assert np.mean(visibility > 0.99) > 0.3


def test_pictures_are_well_exposed_and_differ(coco, split):
    means = []
    for image in coco.imgs.values():
        picture = cv2.imread(str(TABLETOP / split / image["file_name"]))
        assert 40 < picture.mean() < 210
        assert picture.std() > 12
        assert np.mean((picture > 250).all(-1)) < 0.1
        means.append(picture.mean((0, 1)))
    assert np.std(means, 0).min() > 12


def test_the_annotations_as_detections_have_ap_1(coco):
    for kind in ("bbox", "segm"):
        found = [a | {"score": 1.0} for a in coco.dataset["annotations"]]
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(coco, coco.loadRes(found), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        assert evaluation.stats[0] == pytest.approx(1.0)


def test_the_set_is_small_enough_to_be_committed():
    sizes = [path.stat().st_size for path in TABLETOP.rglob("*") if path.is_file()]
    assert sum(sizes) < 11_000_000
    assert max(sizes) < 1_000_000


def test_nothing_lies_about_that_the_annotations_do_not_name(coco, split):
    images = coco.dataset["images"]
    assert {p.name for p in (TABLETOP / split).iterdir()} == {i["file_name"] for i in images}
    depth = {str(p.relative_to(TABLETOP)) for p in (TABLETOP / "depth" / split).iterdir()}
    assert depth == {i["depth_file"] for i in images}


def make(*args):
    command = [sys.executable, str(TOOL), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two scenes of each split, by two processes."""
    out = tmp_path_factory.mktemp("made")
    run = make(out, "--train", 2, "--val", 1, "--workers", 2)
    assert run.returncode == 0, run.stderr
    return out


def files_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.*") if p.is_file()}


@drawing
@pytest.mark.slow
def test_a_scene_depends_on_its_number_alone(made, tmp_path):
    assert make(tmp_path, "--train", 1, "--val", 1).returncode == 0
    again, before = files_of(tmp_path), files_of(made)
    del again["instances_train.json"]
    assert again.items() <= before.items()
    few, more = (json.loads((f / "instances_train.json").read_text()) for f in (tmp_path, made))
    assert few["annotations"] == [a for a in more["annotations"] if a["image_id"] == 0]


@drawing
@pytest.mark.slow
def test_the_program_makes_the_set_that_is_here(made):
    """The same scene; its pixels may differ by a rounding between kinds of processor."""
    for split, index in (("train", 0), ("train", 1), ("val", 0)):
        name = f"{split}/{index:06d}"
        new, old = (cv2.imread(str(f / f"{name}.jpg")).astype(int) for f in (made, TABLETOP))
        assert np.abs(new - old).mean() < 0.5
        new, old = (
            cv2.imread(str(f / f"depth/{name}.png"), -1).astype(int) for f in (made, TABLETOP)
        )
        assert np.mean(np.abs(new - old) > 1) < 0.001
    new, old = (json.loads((f / "instances_train.json").read_text()) for f in (made, TABLETOP))
    assert new["categories"] == old["categories"]
    assert new["info"] == old["info"]
    kinds = [[a["category_id"] for a in d["annotations"] if a["image_id"] < 2] for d in (new, old)]
    assert kinds[0] == kinds[1]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--train", "-1"], "--train -1: must be 0"),
        (["--quality", "101"], "--quality 101: must be 1 to 100"),
        (["--size", "32", "240"], "--size 32 240: both must be 64 or more"),
        (["--workers", "0"], "--workers 0: must be 1"),
    ],
)
def test_wrong_options_are_said(tmp_path, args, message):
    run = make(tmp_path / "out", *args)
    assert run.returncode == 2
    assert message in run.stderr
    assert not (tmp_path / "out").exists()


def test_without_pybullet_it_says_how_to_get_it(tmp_path):
    code = (
        "import sys; sys.modules['pybullet'] = None\n"
        "import make_tabletop; make_tabletop.main(['x'])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=TOOL.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 2
    assert "pip install pybullet" in run.stderr
    assert not (TOOL.parent / "x").exists()
