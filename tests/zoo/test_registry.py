"""The registry against its page, the configurations and the key lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from support import tiny

from condseg.models.backbones.files import sha256_in_name
from condseg.zoo.detectors import import_detector
from condseg.zoo.registry import BACKBONES, DEFAULT_MODEL, MODELS, tables
from tests.zoo.test_published import made_up, needs_key_lists

KEY_LISTS = {
    "condinst_r50": ("CondInst_MS_R_50", "keys_condinst.json"),
    "condinst_r50_sem": ("CondInst_MS_R_50_sem", "keys_condinst.json"),
    "condinst_r101": ("CondInst_MS_R_101", "keys_condinst.json"),
    "boxinst_r50": ("BoxInst_MS_R_50", "keys_condinst.json"),
}


def network_of(config: str) -> dict[str, Any]:
    network: dict[str, Any] = yaml.safe_load((tiny.CONFIGS / config).read_text())["model"][
        "network"
    ]
    return network


def test_the_page_shows_the_registry() -> None:
    page = (tiny.REPOSITORY / "docs" / "models.md").read_text()
    shown = page.partition("<!-- python tools/models.py -->\n")[2].partition("<!-- end -->")[0]
    assert shown == tables(), "python tools/models.py prints what must be there"


def test_names_and_addresses() -> None:
    assert DEFAULT_MODEL in MODELS
    model = MODELS["condinst_r50_3x_sem"]
    assert model.config == "condinst_r50_sem.yaml"
    assert (model.folder, model.file) == (
        "tianzhi/AdelaiDet-CondInst",
        "CondInst_MS_R_50_3x_sem.pth",
    )
    assert sha256_in_name(Path(model.file)) == ""
    assert sha256_in_name(Path(MODELS["condinst_r50_mmdet"].file)) == "4c186406"
    files = [m.file for m in MODELS.values()]
    assert len(set(files)) == len(files)
    assert len({b.key for b in BACKBONES}) == len(BACKBONES)


@pytest.mark.parametrize("name", MODELS)
def test_the_configuration_is_there(name: str) -> None:
    assert (tiny.CONFIGS / MODELS[name].config).is_file()
    assert 30 < MODELS[name].mask_ap < MODELS[name].box_ap < 50


@needs_key_lists
@pytest.mark.parametrize("config", KEY_LISTS)
def test_the_key_lists_give_the_configurations_network(config: str) -> None:
    found = import_detector(made_up(*KEY_LISTS[config]), config).network
    wanted = network_of(f"{config}.yaml")
    assert found["backbone"] == {
        "name": wanted["backbone"]["name"],
        "weights": None,
        "style": "caffe",
        "width": 64,
        "stem_width": 64,
    }
    defaults = {
        "num_classes": 80,
        "channels": 256,
        "pyramid": "fpn",
        "tower_convs": 4,
        "mask_branch_channels": 128,
        "mask_branch_convs": 4,
        "mask_features": 8,
        "mask_head_channels": 8,
        "mask_head_layers": 3,
        "semantic_loss": False,
    }
    rest = {key: value for key, value in found.items() if key != "backbone"}
    assert rest == defaults | {k: v for k, v in wanted.items() if k != "backbone"}
