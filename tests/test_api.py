"""import condseg: load, Model, train."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import foreign, tiny
from support.coco import CocoSet
from support.loopback import serving, use_hub

import condseg
from condseg.inference import SCORE_THRESHOLD
from condseg.inference.inputs import read_source
from condseg.zoo.checkpoint import newest_best


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.write_checkpoint(tmp_path_factory.mktemp("run") / "best.ckpt")


@pytest.fixture(scope="module")
def model(checkpoint):
    return condseg.load(checkpoint, device="cpu")


def noise(*size):
    return np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)


def test_an_image_of_any_kind(model, tmp_path):
    pixels = noise(60, 90)
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    with serving() as server:
        server.files["/image.png"] = path.read_bytes()
        url = f"{server.url}/image.png"
        sources = [path, str(path), url, Image.open(path), pixels, tensor, tensor / 255]
        every = model.predict(sources, score_threshold=0.01)
    found = model.predict(path, score_threshold=0.01)
    assert len(found) > 0
    assert isinstance(every, list)
    for other in every:
        for name in ("boxes", "scores", "labels", "masks", "image"):
            assert np.array_equal(getattr(found, name), getattr(other, name))
            assert getattr(other, name).flags.writeable
    assert [one.source for one in every] == [str(path), str(path), url, str(path), "", "", ""]
    assert model.predict([]) == []


def test_an_image_is_upright_and_its_transparency_white(model, tmp_path):
    image = Image.new("RGBA", (30, 20), (0, 0, 0, 0))
    exif = image.getexif()
    exif[0x0112] = 6  # rotated by 90 degrees
    image.save(tmp_path / "image.png", exif=exif)
    with Image.open(tmp_path / "image.png") as opened:
        found = model.predict(opened)
        assert opened.size == (30, 20)  # the input stays
    assert found.size == (30, 20)
    assert (found.image == 255).all()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("absent.jpg", "absent.jpg: no such image file"),
        (np.zeros((4, 4), np.uint8), r"uint8 of shape \(4, 4\)"),
        (torch.zeros(4, 4, 3), r"shape \(4, 4, 3\); \(3, H, W\) is allowed"),
        (torch.full((3, 4, 4), 1.5), r"floats 1.5..1.5; 0..1 is allowed"),
        (torch.full((3, 4, 4), torch.nan), "floats nan"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "torch.int64; uint8 or floats"),
        ("http://127.0.0.1:9/image.png", "http://127.0.0.1:9/image.png: no connection"),
    ],
)
def test_a_wrong_image_is_named(model, source, message):
    with pytest.raises(ValueError, match=message):
        model.predict(source)


def test_an_address_of_no_image(tmp_path, monkeypatch):
    with serving() as server:
        server.files["/image.png"] = b"text"
        with pytest.raises(ValueError, match=f"{server.url}/image.png: cannot be read as a") as no:
            read_source(f"{server.url}/image.png")
        assert "/tmp" not in str(no.value)
        monkeypatch.setattr("condseg.inference.inputs.MAX_BYTES", 3)
        with pytest.raises(ValueError, match="more than 3 bytes"):
            read_source(f"{server.url}/image.png")


def test_options_of_a_prediction(model):
    image = noise(64, 64)
    every = model.predict(image, score_threshold=0.0)
    assert len(every) > 5
    threshold = float(every.scores[4])
    assert np.array_equal(
        model.predict(image, score_threshold=threshold).scores,
        every.scores[every.scores >= threshold],
    )
    assert (model.predict(image).scores >= SCORE_THRESHOLD).all()
    assert len(model.predict(image, score_threshold=0.0, max_detections=3)) == 3
    many = {"score_threshold": 0.0, "max_detections": 300}
    assert len(model.predict(image, **many, class_agnostic_nms=True)) < len(
        model.predict(image, **many)
    )
    connected = model.predict(image, score_threshold=0.0, keep_islands=False)
    assert connected.masks.sum() < every.masks.sum()
    with pytest.raises(ValueError, match="score_threshold is 40"):
        model.predict(image, score_threshold=40.0)
    assert model.predictor.postprocess.score_threshold is None  # evaluations keep the training's


def test_depth(tmp_path):
    filter_ = {"class_path": "condseg.layers.DynamicDilatedPyramid2d"}
    path = tiny.write_checkpoint(tmp_path / "rgbd.ckpt", mask_filter=filter_, depth_channels=8)
    model = condseg.load(path, device="cpu")
    depth = np.full((64, 64), 800, np.uint16)
    Image.fromarray(depth).save(tmp_path / "depth.png")
    image = noise(64, 64)
    by_path, by_array = model.predict([image] * 2, depth=[tmp_path / "depth.png", depth])
    assert np.array_equal(by_path.scores, by_array.scores)
    for wrong in (depth, [depth]):
        with pytest.raises(ValueError, match="depth is not a list of 2"):
            model.predict([image] * 2, depth=wrong)


def test_evaluate(model, tmp_path):
    coco = CocoSet(tmp_path, "val", sizes=[(64, 80)] * 2)
    report = model.evaluate(tmp_path, workers=0, output=tmp_path / "out")
    assert 0 <= report["mask/AP"] <= 1
    assert report["mask/AP"] == report.metrics["mask/AP"]
    assert report.images == 2
    assert (tmp_path / "out" / "summary.json").is_file()
    few = model.evaluate(
        annotations=coco.json, images=coco.images, workers=0, max_detections=1, score_threshold=0.0
    )
    assert 1 <= few.detections <= 2 < report.detections


def test_a_published_model_by_its_name(tmp_path, monkeypatch):
    torch.save(foreign.adelaidet(foreign.small_network()), tmp_path / "made_up.pth")
    with serving() as server:
        file = "/hub/tianzhi/AdelaiDet-CondInst/resolve/main/CondInst_MS_R_50_1x.pth"
        server.files[file] = (tmp_path / "made_up.pth").read_bytes()
        use_hub(monkeypatch, server.url, tmp_path / "cache")
        assert len(condseg.load("condinst_r50_1x", device="cpu").names) == 80
    model = condseg.load("condinst_r50_1x", device="cpu", offline=True)
    assert "model: condinst_r50_1x" in repr(model)
    with pytest.raises(ValueError, match=r"no such file, and .* did you mean condinst_r50_1x"):
        condseg.load("condinst_r50_1")


def test_the_newest_run_is_the_default(tmp_path, monkeypatch):
    path = Path("runs/tabletop/version_0/checkpoints/last.ckpt")
    tiny.write_checkpoint(tmp_path / path)
    monkeypatch.chdir(tmp_path)
    model = condseg.load(device="cpu")
    assert model.source == str(path)
    assert model.names == ("box", "disc", "spoon")
    shown = model._repr_html_()
    assert "box, disc, spoon" in shown
    assert str(path) in shown


def test_train(tmp_path):
    data = tiny.make_set(tmp_path / "data", train=4, val=2)
    args = tiny.arguments(data, tmp_path / "runs", "--progress.refresh_rate=0")
    given = dict(arg.removeprefix("--").split("=", 1) for arg in args)
    config = given.pop("config")
    for key in ("trainer.default_root_dir", "data.root", "trainer.max_steps", "data.batch_size"):
        del given[key]
    given |= {"trainer.val_check_interval": 2, "data.short_sides": [64], "data.workers": 0}
    best = condseg.train(
        [config], data, max_steps=2, batch_size=2, runs=tmp_path / "runs", options=given
    )
    assert Path(best.source) == newest_best(tmp_path / "runs")
    assert Path(best.source).name == "best.ckpt"
    assert best.names == ("box", "disc")
    assert best.evaluate(workers=0).images == 2
    steps = torch.load(best.source, weights_only=True)["global_step"]
    assert steps == 2


def test_a_wrong_option_of_train_is_a_value_error(tmp_path):
    with pytest.raises(ValueError, match=r"unknown key data\.bach_size; did you mean data\.batch"):
        condseg.train("quickstart", options={"data.bach_size": 3})
    with pytest.raises(ValueError, match=r"quickstrat; did you mean quickstart\.yaml"):
        condseg.train("quickstrat")
    with pytest.raises(FileNotFoundError, match=r"data.root: .*absent does not exist"):
        condseg.train("quickstart", data=tmp_path / "absent", options={"data.train_images": None})


@pytest.mark.tool
def test_what_is_imported(checkpoint):
    """torch is imported by the first use; a prediction needs no code of training."""
    code = f"""
import sys, condseg
assert set(condseg.__all__) <= set(dir(condseg))
assert not {{"torch", "cv2", "numpy", "PIL"}} & set(sys.modules)
import numpy
model = condseg.load({str(checkpoint)!r}, device="cpu")
model.predict(numpy.zeros((64, 64, 3), numpy.uint8))
assert isinstance(model, condseg.Model)
training = ("lightning", "pytorch_lightning", "tensorboard", "condseg.training", "condseg.cli")
print([name for name in sys.modules if name.startswith(training)])
"""
    result = subprocess.run(
        [sys.executable, "-c", code], env=tiny.environment(), capture_output=True, text=True
    )
    assert result.stdout == "[]\n", result.stdout + result.stderr
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        condseg.lode  # noqa: B018
