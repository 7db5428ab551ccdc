import numpy as np
import pytest
import torch
from support.coco import CocoSet
from support.tiny import write_checkpoint

from condseg.cli.arguments import start_defaults
from condseg.data.collate import collate
from condseg.inference.device import pick_device
from condseg.inference.evaluate import evaluate
from condseg.inference.predictor import Predictor
from condseg.models import PostProcess
from condseg.zoo.checkpoint import RECIPE, load


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("run") / "best.ckpt")


def noise(*size):
    return np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(50, 200), (300, 120), (1, 1), (64, 96)])
def test_detections_are_in_the_images_own_pixels(checkpoint, size):
    found = Predictor.from_checkpoint(checkpoint, "cpu")(noise(*size))
    assert found.masks.shape == (len(found), *size)
    assert len(found) > 0 or size == (1, 1)
    assert (found.boxes >= 0).all()
    assert (found.boxes <= torch.tensor([size[1], size[0], size[1], size[0]])).all()
    assert (found.scores.diff() <= 0).all()


def test_a_file_of_a_set_and_its_pixels_agree(checkpoint, tmp_path):
    predictor = Predictor.from_checkpoint(checkpoint, "cpu")
    coco = CocoSet(tmp_path, sizes=[(80, 90)])
    by_set = predictor.predict(collate([coco.open(transform=predictor.transform)[0]]))[0]
    by_pixels = predictor(coco.open()[0].image.permute(1, 2, 0).numpy())
    assert len(by_set) > 0
    assert torch.equal(by_set.scores, by_pixels.scores)
    assert torch.equal(by_set.masks, by_pixels.masks)


def test_arguments_override_the_checkpoint(checkpoint):
    for options, count in (({"max_detections": 3}, 3), ({"score_threshold": 1.0}, 0)):
        assert len(Predictor.from_checkpoint(checkpoint, "cpu", **options)(noise(64, 64))) == count


def test_the_threshold_in_a_recipe_of_an_older_version(checkpoint):
    content = load(checkpoint)
    assert content[RECIPE]["model"]["postprocess"] == {
        "score_threshold": 0.0005,
        "max_detections": 12,
    }
    for postprocess in (
        Predictor.from_checkpoint(checkpoint, "cpu").postprocess,
        PostProcess(**start_defaults(content)["postprocess"]),
    ):
        assert postprocess.score_threshold is None
        assert postprocess.candidate_threshold == 0.0005


def test_precision(checkpoint):
    best = []
    for precision, dtype in (("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)):
        predictor = Predictor.from_checkpoint(checkpoint, "cpu", precision=precision)
        seen = []
        predictor.network.pyramid.output[0].register_forward_hook(
            lambda m, i, y, s=seen: s.append(y.dtype)
        )
        best.append(predictor(noise(64, 64)).scores[:5])
        assert seen[0] == dtype
    assert not torch.equal(*best)
    torch.testing.assert_close(*best, rtol=0.05, atol=0)


def test_wrong_values_are_named(checkpoint, tmp_path, monkeypatch):
    predictor = Predictor.from_checkpoint(checkpoint, "cpu")
    for settings in ({"score_threshold": 1.5}, {"max_detections": 0}, {"precision": "bf16"}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            Predictor.from_checkpoint(checkpoint, "cpu", **settings)
    for device in ("gpu", "cuda:99"):
        with pytest.raises(ValueError, match=f"device is '{device}'"):
            pick_device(device)
    with pytest.raises(ValueError, match="uint8"):
        predictor(np.zeros((4, 4, 4), np.uint8))
    for size in ((0, 5), (5, 0), (0, 0)):
        with pytest.raises(ValueError, match=f"image is {size[0]}x{size[1]} .* allowed are 1 to"):
            predictor(np.zeros((*size, 3), np.uint8))
    with pytest.raises(ValueError, match="batch_size"):
        evaluate(predictor, batch_size=0)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="condseg train --config quickstart"):
        Predictor.from_checkpoint()


def test_the_newest_run_is_the_default(tmp_path, monkeypatch):
    write_checkpoint(tmp_path / "runs" / "tabletop" / "version_0" / "checkpoints" / "best.ckpt")
    monkeypatch.chdir(tmp_path)
    assert Predictor.from_checkpoint().names == ("box", "disc", "spoon")
