"""Checkpoints of other projects: the names of all their tensors have a place in our network."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from condseg.models.backbones.backbone import Backbone
from condseg.models.backbones.files import load_strict
from condseg.models.condinst import CondInst
from condseg.zoo.adelaidet import convert_adelaidet
from condseg.zoo.mmdetection import convert_mmdetection

GOLDEN = Path(
    os.environ.get("CONDSEG_GOLDEN") or Path(__file__).resolve().parents[3] / "shared" / "golden"
)
needs_key_lists = pytest.mark.skipif(
    not (GOLDEN / "keys_condinst.json").exists(), reason=f"no key lists in {GOLDEN}"
)
DTYPES = {"float32": torch.float32, "int64": torch.int64}


def made_up(model: str, file: str = "keys_condinst.json") -> dict[str, Tensor]:
    """A checkpoint with the published names and shapes; its tensors take no memory."""
    lists = json.loads((GOLDEN / file).read_text())
    keys = next(keys for name, keys in lists.items() if name.startswith(model))
    return {k: torch.zeros((), dtype=DTYPES[d]).expand(shape) for k, (shape, d) in keys.items()}


def network(depth: int = 50, **options: Any) -> CondInst:
    return CondInst(Backbone(f"resnet{depth}", None, style="caffe"), 80, **options)


@needs_key_lists
@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("CondInst_MS_R_50", {}),
        ("CondInst_MS_R_50_sem", {"semantic_loss": True}),
        ("CondInst_MS_R_101", {"depth": 101}),
        ("BoxInst_MS_R_50", {"mask_features": 16}),
    ],
)
def test_adelaidet(model: str, options: dict[str, Any]) -> None:
    state = convert_adelaidet(made_up(model))
    expected = network(**options).state_dict()
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in expected.items()}


@needs_key_lists
def test_mmdetection_has_the_same_tensors_in_the_same_places() -> None:
    """Number every tensor, and convert it along both ways."""
    pairs = json.loads((GOLDEN / "keymap_condinst.json").read_text())["adelaidet_to_mmdet"]
    theirs = made_up("mmdet_condinst", "keys_mmdet_condinst.json")
    marks = {k: torch.full(theirs[m].shape, float(i)) for i, (k, m) in enumerate(pairs.items())}
    ours = convert_adelaidet(marks)
    also = convert_mmdetection({**theirs, **{pairs[k]: v for k, v in marks.items()}})
    assert ours.keys() == also.keys() == network().state_dict().keys()
    for key, tensor in ours.items():
        assert torch.equal(tensor, also[key].to(tensor.dtype)), key


def test_an_unknown_name_is_an_error() -> None:
    for convert, key in (
        (convert_adelaidet, "backbone.bottom_up.res3.0.conv2_gate.weight"),
        (convert_mmdetection, "bbox_head.new.weight"),
    ):
        with pytest.raises(ValueError, match=f"unknown tensor {key}"):
            convert({key: torch.zeros(1)})


def test_what_is_derived_is_named(caplog: pytest.LogCaptureFixture) -> None:
    names = ("mask_head._iter", "mask_head.sizes_of_interest", "pixel_mean")
    with caplog.at_level("INFO"):
        assert convert_adelaidet({name: torch.zeros(1) for name in names}) == {}
    assert all(any(name in message for message in caplog.messages) for name in names)


def test_another_number_of_classes_names_both_sides() -> None:
    with pytest.raises(ValueError, match=r"bias: \(80,\) in the file, \(5,\) in the network"):
        load_strict(
            torch.nn.Conv2d(1, 5, 1),
            {"weight": torch.zeros(5, 1, 1, 1), "bias": torch.zeros(80)},
            source="a converted checkpoint",
        )
