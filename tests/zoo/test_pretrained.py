"""Checkpoints of other projects: converted, used for prediction and for a training."""

import json
import logging
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support import foreign, tiny
from support.coco import CATEGORIES, CocoSet
from support.networks import tiny_backbone

from condseg.cli.convert import main as convert_main
from condseg.cli.train import main
from condseg.inference.predictor import Predictor
from condseg.layers import DeformConv2d
from condseg.models.pyramids.bifpn import BiFPN
from condseg.structures import Category
from condseg.zoo.checkpoint import RECIPE, restore, restore_content
from condseg.zoo.pretrained import coco_categories, convert, start_content, start_from

CONSTANTS = {"pixel_mean", "pixel_std", "mask_head.sizes_of_interest"}
PROJECTS = {  # names, style of the ResNet, tensors that are not used
    "AdelaiDet": (foreign.adelaidet, "caffe", CONSTANTS),
    "mmdetection": (foreign.mmdetection, "torchvision", set()),
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


def same(network, other):
    states = (dict(n.state_dict()) for n in (network, other))
    torch.testing.assert_close(*states, rtol=0, atol=0)


def converted(content, path):
    return restore_content(convert(foreign.save(content, path)), "x")


def test_coco_has_80_classes_whose_ids_have_gaps():
    categories = coco_categories()
    assert len(categories) == 80
    assert [categories[i].id for i in (0, 11, 79)] == [1, 13, 90]
    assert categories[11].name == "stop sign"


def deformable():
    names = ["layer2.0.conv2", "layer4.1.conv2"]
    backbone = tiny_backbone(style="caffe", conv=DeformConv2d, where=names)
    network = foreign.small_network(backbone=backbone)
    for name in names:
        torch.nn.init.normal_(network.get_submodule(f"backbone.network.{name}.offset").weight)
    return network


def bifpn(repeats):
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
def test_adelaidet(tmp_path, network, wrapped, keys):
    expected = network()
    state = foreign.adelaidet(expected)
    assert set(keys) <= state.keys()
    state["mask_head._iter"] = torch.tensor([90_000.0])  # BoxInst counts its steps
    content = {wrapped: state, "iteration": 3} if wrapped else state
    restored = converted(content, tmp_path / "x.pth")
    same(restored.network, expected)
    assert restored.network.mask_branch.has_semantic_branch is (wrapped == "state_dict")
    mean = restored.network.backbone.mean.flatten().tolist()
    assert mean == pytest.approx([103.53, 116.28, 123.675])
    assert restored.categories == coco_categories()
    assert (restored.short_side, restored.max_long_side) == (800, 1333)
    assert restored.postprocess.threshold_with_centerness


def test_numpy_arrays_inside(tmp_path):
    network = foreign.small_network()
    state = {k: v.numpy() for k, v in foreign.adelaidet(network).items()}
    content = {"model": state, "best": np.float64(3)}
    same(converted(content, tmp_path / "x.pth").network, network)


def test_safetensors_of_mmdetection(tmp_path):
    network = foreign.small_network("torchvision")
    save_file(foreign.mmdetection(network), tmp_path / "x.safetensors")
    restored = restore_content(convert(tmp_path / "x.safetensors"), "x")
    same(restored.network, network)
    assert not restored.postprocess.threshold_with_centerness
    std = restored.network.backbone.std.flatten().tolist()
    assert std == pytest.approx([58.395, 57.12, 57.375])


TOWER = "mask_branch.tower.0.0.weight"
ONE = torch.zeros(1)
WRONG_SHAPE = (
    r"mask_branch.tower.0.0.weight: \(16, 17, 3, 3\) in the file, \(16, 16, 3, 3\) in the "
)


@pytest.mark.parametrize(
    ("without", "change", "message"),
    [
        (TOWER, {}, "no tensor corresponds to mask_branch.tower.1.weight"),
        (" ", {"proposal_generator.new": ONE}, "unknown tensor proposal_generator.new"),
        (" ", {TOWER: torch.zeros(16, 17, 3, 3)}, WRONG_SHAPE + "network"),
        (" ", {"controller.weight": torch.zeros(170, 64, 3, 3)}, "the controller has 170 outputs"),
        (".res3.1.", {}, r"the backbone has \(2, 1, 2, 2\) blocks; supported are resnet18"),
        ("cls_logits", {}, "no tensor corresponds to head.class_logits.weight"),
        (
            "",
            {"conv1.weight": ONE, "fc.weight": ONE},
            "is a classifier; use it as --model.network.backbone.weights",
        ),
        (
            "",
            {"backbone.conv1.weight": ONE, "rpn_head.x": ONE},
            "of which only the backbone is supported",
        ),
        ("", {"network.head.scales": ONE}, "already a checkpoint of condseg"),
        ("", {"a.b": ONE}, r"not a CondInst, BoxInst or RTMDet-Ins .* are a.b"),
        ("", {"hub": Path}, r"holds pathlib.Path, and pickled code is never exec"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, without, change, message):
    """``without`` is a part of the names that are removed."""
    state = foreign.adelaidet(foreign.small_network())
    state = {k: v for k, v in state.items() if without not in k} | change
    with pytest.raises(ValueError, match=message):
        converted(state, tmp_path / "x.pth")


def test_other_classes_get_their_names(tmp_path, caplog):
    path, other = (
        foreign.save(foreign.adelaidet(foreign.small_network(num_classes=n)), tmp_path / f"{n}.pth")
        for n in (2, 3)
    )
    data = CocoSet(tmp_path)
    content = convert(path, data.json)
    assert content[RECIPE]["categories"] == CATEGORIES
    assert json.loads(json.dumps(content[RECIPE])) == content[RECIPE]  # plain data
    assert [c["name"] for c in convert(path)[RECIPE]["categories"]] == ["class 1", "class 2"]
    assert "2 classes without names" in caplog.text
    with pytest.raises(ValueError, match=r"has 2 classes, .*3.pth has 3"):
        convert(other, data.json)


@pytest.mark.parametrize("project", PROJECTS)
def test_the_command_then_the_same_detections(tmp_path, project, capsys, caplog):
    names, style, constants = PROJECTS[project]
    network = foreign.small_network(style)
    state, target = names(network), tmp_path / "out" / "x.ckpt"
    source = foreign.save(state, tmp_path / "x.pth")
    with caplog.at_level(logging.INFO):
        convert_main([source, str(target)])
    assert f"{project}'s {source}" in capsys.readouterr().out
    left_out = {key for key in state if f"{key} left out: " in caplog.text}
    assert left_out == constants
    predictor = Predictor(restore(target), "cpu")
    assert len(predictor(IMAGE).scores) > 0
    same(predictor.restored.network, network)
    message = tiny.error(convert_main, [source, source], capsys)
    assert "is the input; choose another file" in message


def start_arguments(source, *more):
    """The network is that of the start, without a configuration."""
    return [f"--init_from={source}", "--model.network.backbone.freeze_stages=0", *more]


NEW = (
    "initialized for 2 classes instead of 80: head.class_logits.weight, head.class_logits.bias, "
    "mask_branch.semantic_logits.weight, mask_branch.semantic_logits.bias"
)


def test_fine_tuning_with_other_classes(tmp_path, monkeypatch):
    data = tiny.make_set(tmp_path / "data")
    network = foreign.small_network(semantic_loss=True)
    source = foreign.save(foreign.adelaidet(network), tmp_path / "x.pth")
    config = tmp_path / "small.yaml"
    config.write_text("trainer: {precision: 32-true}\n")
    args = tiny.arguments(data, tmp_path / "runs", *start_arguments(source))
    args[0] = f"--config={config}"
    log = []
    monkeypatch.setattr("condseg.cli.train.rank_zero_info", log.append)
    main([*args, "--trainer.max_steps=2", "--trainer.val_check_interval=2"])
    assert any(line.startswith(f"started from {source}: ") and line.endswith(NEW) for line in log)
    restored = restore(tmp_path / "runs/small/version_0/checkpoints/last.ckpt")
    trained, loaded = restored.network.state_dict(), network.state_dict()
    assert [c.name for c in restored.categories] == ["box", "disc"]
    assert len(trained["head.class_logits.bias"]) == 2
    # Two steps at the start of the warm-up change the loaded weights very little.
    for key in ("backbone.network.layer3.0.conv1.weight", "head.controller.weight"):
        torch.testing.assert_close(trained[key], loaded[key], atol=1e-3, rtol=0)


def test_a_start_that_does_not_fit_is_named(tmp_path, capsys):
    data = tiny.make_set(tmp_path / "data")
    source = foreign.save(foreign.adelaidet(foreign.small_network()), tmp_path / "x.pth")
    own = tmp_path / "own.yaml"
    own.write_text(f"init_from: {source}")
    for start, message in (
        (
            [f"--config={own}", "--model.network.backbone.name=resnet50"],
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


def test_the_same_classes_keep_their_classifier(tmp_path):
    network = foreign.small_network()
    content = start_content(foreign.save(foreign.adelaidet(network), tmp_path / "x.pth"))
    other = foreign.small_network()
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    assert "its 80 classes" in start_from(other, content, coco_categories(), "x")
    same(other, network)
    other_names = [Category(i, f"c{i}") for i in range(80)]
    assert "initialized for 80 classes" in start_from(other, content, other_names, "x")
