"""Checkpoints of other projects: converted, used for prediction and for a training."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support import foreign, tiny
from support.coco import CATEGORIES
from support.networks import tiny_backbone
from torch import Tensor

from condseg.cli.convert import main as convert_main
from condseg.cli.train import main
from condseg.inference.predictor import Predictor
from condseg.layers import DeformConv2d
from condseg.models.condinst import CondInst
from condseg.models.pyramids.bifpn import BiFPN
from condseg.structures import Category
from condseg.zoo.checkpoint import RECIPE, restore, restore_content
from condseg.zoo.pretrained import coco_categories, convert, start_content, start_from

PROJECTS = {
    "AdelaiDet": (foreign.adelaidet, "caffe"),
    "mmdetection": (foreign.mmdetection, "torchvision"),
}
SEMANTIC_KEYS = ("mask_branch.logits.weight",)
BIFPN_KEYS = (
    "backbone.bottom_up.backbone.res3.0.conv1.weight",
    "backbone.bottom_up.res6.reduction.norm.running_var",
    "backbone.repeated_bifpn.0.lateral_1_f1.bias",
    "backbone.repeated_bifpn.0.weights_f2_2_6_9",
    "backbone.repeated_bifpn.0.outputs_f4_4_11.norm.weight",
)
IMAGE = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)


def write(path: Path, state: dict[str, Any]) -> Path:
    torch.save(state, path)
    return path


def same(network: CondInst, other: CondInst) -> None:
    expected = other.state_dict()
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, expected[key]), key


def test_coco_has_80_classes_whose_ids_have_gaps() -> None:
    categories = coco_categories()
    assert len(categories) == 80
    assert categories[0] == Category(1, "person")
    assert categories[11] == Category(13, "stop sign")
    assert categories[-1] == Category(90, "toothbrush")


def deformable() -> CondInst:
    names = ["layer2.0.conv2", "layer4.1.conv2"]
    backbone = tiny_backbone(style="caffe", conv=DeformConv2d, where=names)
    network = foreign.small_network(backbone=backbone)
    for name in names:
        torch.nn.init.normal_(network.get_submodule(f"backbone.network.{name}.offset").weight)
    return network


def bifpn(repeats: int) -> CondInst:
    network = foreign.small_network(pyramid=partial(BiFPN, num_repeats=repeats))
    for tensor in network.pyramid.state_dict().values():  # no two tensors are alike
        tensor.copy_(torch.rand(tensor.shape) * 9)
    return network


@pytest.mark.parametrize(
    ("network", "wrapped", "keys"),
    [
        (foreign.small_network, None, ()),
        (partial(foreign.small_network, semantic_loss=True), "state_dict", SEMANTIC_KEYS),
        (partial(foreign.small_network, mask_features=16), "model", ()),  # BoxInst
        (partial(foreign.small_network, mask_head_channels=16), "model", ()),  # mmdetection's
        (deformable, "model", ("backbone.bottom_up.res3.0.conv2_offset.weight",)),
        (partial(bifpn, 1), "model", BIFPN_KEYS),
        (partial(bifpn, 2), "model", BIFPN_KEYS),
    ],
    ids=["plain", "semantic", "features", "channels", "deformable", "bifpn", "bifpn-2"],
)
def test_adelaidet(
    tmp_path: Path, network: Callable[[], CondInst], wrapped: str | None, keys: Sequence[str]
) -> None:
    expected = network()
    state = foreign.adelaidet(expected)
    assert set(keys) <= state.keys()
    state["mask_head._iter"] = torch.tensor([90_000.0])  # BoxInst counts its steps
    content: dict[str, Any] = {wrapped: state, "iteration": 3} if wrapped else state
    restored = restore_content(convert(write(tmp_path / "x.pth", content)), "x")
    same(restored.network, expected)
    assert restored.network.mask_branch.has_semantic_branch is (wrapped == "state_dict")
    mean = restored.network.backbone.mean.flatten().tolist()
    assert mean == pytest.approx([103.53, 116.28, 123.675])
    assert restored.categories == coco_categories()
    assert (restored.short_side, restored.max_long_side) == (800, 1333)
    assert restored.postprocess.threshold_with_centerness


def test_numpy_arrays_inside(tmp_path: Path) -> None:
    network = foreign.small_network()
    state = {k: v.numpy() for k, v in foreign.adelaidet(network).items()}
    path = write(tmp_path / "x.pth", {"model": state, "best": np.float64(3)})
    same(restore_content(convert(path), "x").network, network)


def test_safetensors_of_mmdetection(tmp_path: Path) -> None:
    network = foreign.small_network("torchvision")
    save_file(foreign.mmdetection(network), tmp_path / "x.safetensors")
    restored = restore_content(convert(tmp_path / "x.safetensors"), "x")
    same(restored.network, network)
    assert not restored.postprocess.threshold_with_centerness
    std = restored.network.backbone.std.flatten().tolist()
    assert std == pytest.approx([58.395, 57.12, 57.375])


def wrong(state: dict[str, Tensor], change: str) -> dict[str, Any]:
    tower = "mask_branch.tower.0.0.weight"
    changes: dict[str, dict[str, Any]] = {
        "missing": {k: v for k, v in state.items() if k != tower},
        "unknown": state | {"proposal_generator.new": torch.zeros(1)},
        "shape": state | {tower: torch.zeros(16, 17, 3, 3)},
        "controller": state | {"controller.weight": torch.zeros(170, 64, 3, 3)},
        "blocks": {k: v for k, v in state.items() if ".res3.1." not in k},
        "head": {k: v for k, v in state.items() if "cls_logits" not in k},
        "classifier": {"conv1.weight": torch.zeros(1), "fc.weight": torch.zeros(1)},
        "mask_rcnn": {"backbone.conv1.weight": torch.zeros(1), "rpn_head.x": torch.zeros(1)},
        "ours": {"network.head.scales": torch.zeros(1)},
        "other": {"a.b": torch.zeros(1)},
    }
    return changes[change]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "no tensor corresponds to mask_branch.tower.1.weight"),
        ("unknown", "unknown tensor proposal_generator.new"),
        (
            "shape",
            r"mask_branch.tower.0.0.weight: \(16, 17, 3, 3\) in the file, \(16, 16, 3, 3\) in "
            "the network",
        ),
        ("controller", "the controller has 170 outputs"),
        ("blocks", r"the backbone has \(2, 1, 2, 2\) blocks; supported are resnet18"),
        ("head", "no tensor corresponds to head.class_logits.weight"),
        ("classifier", "is a classifier; use it as --model.network.backbone.weights"),
        ("mask_rcnn", "of which only the backbone is supported"),
        ("ours", "already a checkpoint of condseg"),
        ("other", r"not a CondInst or BoxInst .* are a.b"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, change: str, message: str) -> None:
    state = foreign.adelaidet(foreign.small_network())
    with pytest.raises(ValueError, match=message):
        convert(write(tmp_path / "x.pth", wrong(state, change)))


def test_code_is_refused_and_named(tmp_path: Path) -> None:
    path = write(tmp_path / "x.pth", {"model": {}, "hub": Path})
    with pytest.raises(ValueError, match=r"holds pathlib.Path, and pickled code is never exec"):
        convert(path)


def test_other_classes_get_their_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "x.pth", foreign.adelaidet(foreign.small_network(num_classes=2)))
    data = tiny.make_set(tmp_path / "data")
    content = convert(path, data / "instances_val.json")
    assert content[RECIPE]["categories"] == CATEGORIES
    assert [c["name"] for c in convert(path)[RECIPE]["categories"]] == ["class 1", "class 2"]
    assert "2 classes without names" in caplog.text
    path = write(tmp_path / "y.pth", foreign.adelaidet(foreign.small_network(num_classes=3)))
    with pytest.raises(ValueError, match=r"has 2 classes, .*y.pth has 3"):
        convert(path, data / "instances_val.json")


@pytest.mark.parametrize("project", PROJECTS)
def test_the_command_then_the_same_detections(
    tmp_path: Path,
    project: str,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    names, style = PROJECTS[project]
    network = foreign.small_network(style)
    source = write(tmp_path / "x.pth", names(network))
    target = tmp_path / "out" / "x.ckpt"
    with caplog.at_level(logging.INFO):
        convert_main([str(source), str(target)])
    assert f"{project}'s {source}" in capsys.readouterr().out
    assert ("pixel_mean left out: " in caplog.text) == (project == "AdelaiDet")
    predictor = Predictor(restore(target), "cpu")
    assert len(predictor(IMAGE).scores) > 0
    same(predictor.restored.network, network)
    message = tiny.error(convert_main, [str(source), str(source)], capsys)
    assert "is the input; choose another file" in message


def start_arguments(source: Path | str, *more: str) -> list[str]:
    """The network is that of the start, without a configuration."""
    return [f"--init_from={source}", "--model.network.backbone.freeze_stages=0", *more]


NEW = (
    "initialized for 2 classes instead of 80: head.class_logits.weight, head.class_logits.bias, "
    "mask_branch.semantic_logits.weight, mask_branch.semantic_logits.bias"
)


def test_fine_tuning_with_other_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny.make_set(tmp_path / "data")
    network = foreign.small_network(semantic_loss=True)
    source = write(tmp_path / "x.pth", foreign.adelaidet(network))
    config = tmp_path / "small.yaml"
    config.write_text("trainer: {precision: 32-true}\n")
    args = tiny.arguments(data, tmp_path / "runs", *start_arguments(source))
    args[0] = f"--config={config}"
    log: list[str] = []
    monkeypatch.setattr("condseg.cli.train.rank_zero_info", log.append)
    main([*args, "--trainer.max_steps=2", "--trainer.val_check_interval=2"])
    assert any(line.startswith(f"started from {source}: ") and line.endswith(NEW) for line in log)
    restored = restore(tmp_path / "runs" / "small" / "version_0" / "checkpoints" / "last.ckpt")
    trained = restored.network
    assert [c.name for c in restored.categories] == ["box", "disc"]
    assert trained.head.class_logits.out_channels == 2
    # Two steps at the start of the warm-up change the loaded weights very little.
    for key in ("backbone.network.layer3.0.conv1.weight", "head.controller.weight"):
        torch.testing.assert_close(
            trained.state_dict()[key], network.state_dict()[key], atol=1e-3, rtol=0
        )


def test_a_start_that_does_not_fit_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tiny.make_set(tmp_path / "data")
    source = write(tmp_path / "x.pth", foreign.adelaidet(foreign.small_network()))
    own = tmp_path / "own.yaml"
    own.write_text(f"init_from: {source}")
    for start, message in (
        (
            [f"--config={own}"],
            "has model.network.backbone.name resnet18, this configuration resnet50",
        ),
        (
            start_arguments(source, "--model.network.backbone.style=torchvision"),
            "has model.network.backbone.style caffe, this configuration torchvision",
        ),
        (start_arguments(tmp_path / "absent.pth"), "absent.pth: no such file; no published model"),
        (start_arguments("condinst_r50_3y"), "did you mean condinst_r50_3x? There are "),
    ):
        args = [*start, f"--data.root={data}", "--trainer.accelerator=cpu"]
        assert message in tiny.error(main, args, capsys)


def test_the_same_classes_keep_their_classifier(tmp_path: Path) -> None:
    network = foreign.small_network()
    content = start_content(str(write(tmp_path / "x.pth", foreign.adelaidet(network))))
    other = foreign.small_network()
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    assert "its 80 classes" in start_from(other, content, coco_categories(), "x")
    same(other, network)
    other_names = [Category(i, f"c{i}") for i in range(80)]
    assert "initialized for 80 classes" in start_from(other, content, other_names, "x")


def test_every_tensor_is_used_or_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = foreign.adelaidet(foreign.small_network())
    with caplog.at_level(logging.INFO):
        content = convert(write(tmp_path / "x.pth", state))
    left_out = {k for k in state if any(f"{k} left out: " in m for m in caplog.messages)}
    assert left_out == {"pixel_mean", "pixel_std", "mask_head.sizes_of_interest"}
    counters = sum(k.endswith("num_batches_tracked") for k in content["state_dict"])
    counters -= sum(k.endswith("num_batches_tracked") for k in state)
    scales = 5  # five tensors become one
    assert len(content["state_dict"]) - counters == len(state) - len(left_out) - scales + 1
    recipe = content[RECIPE]
    assert json.loads(json.dumps(recipe)) == recipe  # plain data
