"""The registry, its documentation, and the key lists of the published checkpoints."""

from pathlib import Path

import pytest
import torch
import yaml
from support import tiny
from support.adelaidet_tensors import bifpn_shapes
from support.key_lists import checkpoint, needs_key_lists, read
from support.rtmdet_tensors import empty

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


# Configuration -> arguments of bifpn_shapes.
BIFPN = {
    "condinst_r50_bifpn": (50, 8, False, False),
    "condinst_r101_bifpn_sem": (101, 8, True, False),
    "boxinst_r101_bifpn": (101, 16, False, False),
    "boxinst_r101_bifpn_dcni3": (101, 16, False, True),
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
    without_ms = MODELS["condinst_r101_bifpn_3x_sem"]
    assert without_ms.file == "CondInst_R_101_BiFPN_3x_sem.pth"
    assert without_ms.config == "condinst_r101_bifpn_sem.yaml"
    assert len({m.file for m in MODELS.values()}) == len(MODELS)
    assert len({key for _, _, key, _ in BACKBONES}) == len(BACKBONES)


@pytest.mark.parametrize("name", MODELS)
def test_the_configuration_exists(name):
    assert (tiny.CONFIGS / MODELS[name].config).is_file()
    assert 30 < MODELS[name].mask_ap < MODELS[name].box_ap < 53


def check_configuration(config, state, style="caffe", **differences):
    """The tensors are those of the network that is inferred from them, and of the configuration."""
    detector = import_detector(state, config)
    content = yaml.safe_load((tiny.CONFIGS / f"{config}.yaml").read_text())
    expected = content["model"]["network"] | differences
    expected["backbone"] |= {"weights": None, "style": style}
    with torch.device("meta"):
        network, _ = build({"network": detector.network, "postprocess": {}})
        other, _ = build({"network": {"num_classes": 80} | expected, "postprocess": {}})
    load_strict(network, detector.state, source=config)
    load_strict(other, detector.state, source=config)
    return detector


@needs_key_lists
@pytest.mark.parametrize("config", KEY_LISTS)
def test_key_lists_and_configurations_have_the_same_network(config):
    check_configuration(config, checkpoint(KEY_LISTS[config]))


@pytest.mark.parametrize("config", BIFPN)
def test_adelaidets_bifpn(config):
    detector = check_configuration(config, empty(bifpn_shapes(*BIFPN[config])))
    where = detector.network["backbone"].get("where", [])
    assert len(where) == (30 if config.endswith("dcni3") else 0)


@needs_key_lists
@pytest.mark.parametrize(("config", "blocks"), [("boxinst_r50", 6), ("boxinst_r101", 23)])
def test_mmdetections_boxinst(config, blocks):
    """CondInst's tensors, but for 16 mask features and 16 channels of the mask head."""
    state = checkpoint("mmdet_condinst", "keys_mmdet_condinst.json")
    branch = "mask_head.mask_feature_head.conv_pred"
    changed = {
        f"{branch}.weight": (16, 128, 1, 1),
        f"{branch}.bias": (16,),
        "bbox_head.controller.weight": (593, 256, 3, 3),
        "bbox_head.controller.bias": (593,),
    }
    assert changed.keys() < state.keys()
    block = {k: v for k, v in state.items() if k.startswith("backbone.layer3.5.")}
    for i in range(6, blocks):
        state |= {k.replace("layer3.5", f"layer3.{i}"): v for k, v in block.items()}
    check_configuration(config, state | empty(changed), "torchvision", mask_head_channels=16)


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
