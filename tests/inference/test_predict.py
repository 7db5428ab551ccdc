import numpy as np
import pytest
import torch
from support.tiny_model import write_checkpoint, write_set

from condseg.data.collate import collate
from condseg.data.dataset import CocoDataset
from condseg.inference.device import pick_device
from condseg.inference.evaluate import evaluate
from condseg.inference.predictor import Predictor


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("run") / "best.ckpt")


@pytest.mark.parametrize("size", [(50, 200), (300, 120), (1, 1), (64, 96)])
def test_detections_are_in_the_images_own_pixels(checkpoint, size):
    predictor = Predictor.from_checkpoint(checkpoint, "cpu")
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    found = predictor(image)
    assert found.masks.shape == (len(found), *size)
    assert len(found) > 0 or size == (1, 1)
    assert (found.boxes >= 0).all()
    assert (found.boxes <= torch.tensor([size[1], size[0], size[1], size[0]])).all()
    assert (found.scores.diff() <= 0).all()


def test_a_file_of_a_set_and_its_pixels_agree(checkpoint, tmp_path):
    predictor = Predictor.from_checkpoint(checkpoint, "cpu")
    root = write_set(tmp_path)
    dataset = CocoDataset(root / "instances_val.json", root / "val", predictor.transform)
    pixels = CocoDataset(root / "instances_val.json", root / "val")[2].image
    by_set = predictor.predict(collate([dataset[2]]))[0]
    by_pixels = predictor(pixels.permute(1, 2, 0).numpy())
    assert torch.equal(by_set.scores, by_pixels.scores)
    assert torch.equal(by_set.masks, by_pixels.masks)


def test_arguments_override_the_checkpoint(checkpoint):
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    assert len(Predictor.from_checkpoint(checkpoint, "cpu", max_detections=3)(image)) == 3
    assert len(Predictor.from_checkpoint(checkpoint, "cpu", score_threshold=1.0)(image)) == 0


def test_precision(checkpoint):
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    found = {}
    for precision in ("32-true", "bf16-mixed"):
        predictor = Predictor.from_checkpoint(checkpoint, "cpu", precision=precision)
        seen = []
        predictor.network.pyramid.output[0].register_forward_hook(
            lambda m, i, y, s=seen: s.append(y)
        )
        found[precision] = predictor(image)
        assert seen[0].dtype == (torch.bfloat16 if precision == "bf16-mixed" else torch.float32)
    best = [f.scores[:5] for f in found.values()]
    assert not torch.equal(*best)
    torch.testing.assert_close(*best, rtol=0.05, atol=0)


def test_wrong_values_are_named(checkpoint, tmp_path, monkeypatch):
    for settings in ({"score_threshold": 1.5}, {"max_detections": 0}, {"precision": "bf16"}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            Predictor.from_checkpoint(checkpoint, "cpu", **settings)
    with pytest.raises(ValueError, match="device is 'gpu'"):
        pick_device("gpu")
    with pytest.raises(ValueError, match="device is 'cuda:99'"):
        pick_device("cuda:99")
    with pytest.raises(ValueError, match="uint8"):
        Predictor.from_checkpoint(checkpoint, "cpu")(np.zeros((4, 4, 4), np.uint8))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"quickstart\.yaml"):
        Predictor.from_checkpoint()
    with pytest.raises(ValueError, match="batch_size"):
        evaluate(Predictor.from_checkpoint(checkpoint, "cpu"), batch_size=0)


def test_the_newest_run_is_the_default(tmp_path, monkeypatch):
    write_checkpoint(tmp_path / "runs" / "tabletop" / "version_0" / "checkpoints" / "best.ckpt")
    monkeypatch.chdir(tmp_path)
    assert Predictor.from_checkpoint().names == ("cup", "fork", "spoon")
