"""The registry, its documentation, and the key lists of the published checkpoints."""

from pathlib import Path

import pytest
import torch
import yaml
from support import tiny
from support.key_lists import checkpoint, needs_key_lists, read

from condseg.models.backbones.files import load_strict, sha256_in_name
from condseg.zoo.adelaidet import convert_adelaidet
from condseg.zoo.checkpoint import build
from condseg.zoo.detectors import import_detector
from condseg.zoo.mmdetection import convert_mmdetection
from condseg.zoo.registry import BACKBONES, DEFAULT_MODEL, MODELS, tables

# Configuration -> beginning of the checkpoint's name in the key lists.
KEY_LISTS = {
    "condinst_r50": "CondInst_MS_R_50",
    "condinst_r50_sem": "CondInst_MS_R_50_sem",
    "condinst_r101": "CondInst_MS_R_101",
    "boxinst_r50": "BoxInst_MS_R_50",
}


def test_the_page_shows_the_registry():
    page = (tiny.REPOSITORY / "docs" / "models.md").read_text()
    shown = page.partition("<!-- python tools/models.py -->\n")[2].partition("<!-- end -->")[0]
    assert shown == tables(), "must be the output of python tools/models.py"


def test_names_and_addresses():
    assert DEFAULT_MODEL in MODELS
    model = MODELS["condinst_r50_3x_sem"]
    assert model.config == "condinst_r50_sem.yaml"
    assert model.folder == "tianzhi/AdelaiDet-CondInst"
    assert model.file == "CondInst_MS_R_50_3x_sem.pth"
    assert sha256_in_name(Path(model.file)) == ""
    assert sha256_in_name(Path(MODELS["condinst_r50_mmdet"].file)) == "4c186406"
    assert len({m.file for m in MODELS.values()}) == len(MODELS)
    assert len({key for _, _, key, _ in BACKBONES}) == len(BACKBONES)


@pytest.mark.parametrize("name", MODELS)
def test_the_configuration_exists(name):
    assert (tiny.CONFIGS / MODELS[name].config).is_file()
    assert 30 < MODELS[name].mask_ap < MODELS[name].box_ap < 50


@needs_key_lists
@pytest.mark.parametrize("config", KEY_LISTS)
def test_key_lists_and_configurations_have_the_same_network(config):
    detector = import_detector(checkpoint(KEY_LISTS[config]), config)
    content = yaml.safe_load((tiny.CONFIGS / f"{config}.yaml").read_text())
    expected = content["model"]["network"]
    expected["backbone"] |= {"weights": None, "style": "caffe"}
    with torch.device("meta"):
        network, _ = build({"network": detector.network, "postprocess": {}})
        other, _ = build({"network": {"num_classes": 80} | expected, "postprocess": {}})
    load_strict(network, detector.state, source=config)
    load_strict(other, detector.state, source=config)


@needs_key_lists
def test_both_projects_have_the_same_tensors_in_the_same_places():
    """Numbered tensors are converted from the names of both."""
    pairs = read("keymap_condinst.json")["adelaidet_to_mmdet"]
    mmdet = checkpoint("mmdet_condinst", "keys_mmdet_condinst.json")
    marks = {k: torch.full(mmdet[m].shape, float(i)) for i, (k, m) in enumerate(pairs.items())}
    converted = convert_adelaidet(marks)
    other = convert_mmdetection({**mmdet, **{pairs[k]: v for k, v in marks.items()}})
    assert converted.keys() == other.keys()
    for key, tensor in converted.items():
        assert torch.equal(tensor, other[key].to(tensor.dtype)), key


def test_an_unknown_name_is_an_error():
    for convert, key in (
        (convert_adelaidet, "backbone.bottom_up.res3.0.conv2_gate.weight"),
        (convert_mmdetection, "bbox_head.new.weight"),
    ):
        with pytest.raises(ValueError, match=f"unknown tensor {key}"):
            convert({key: torch.zeros(1)})
