"""RTMDet-Ins of mmdetection: the tensors and figures of the five sizes, and what they compute."""

import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import yaml
from support import foreign, rtmdet, tiny
from support.rtmdet_tensors import SIZES, State, checkpoint, empty_checkpoint
from torch.utils.flop_counter import FlopCounterMode

from condseg.inference.predictor import Predictor
from condseg.models import CondInst
from condseg.models.backbones.files import load_strict, read_state
from condseg.zoo.checkpoint import build, restore_content
from condseg.zoo.detectors import import_detector
from condseg.zoo.pretrained import convert

each_size = pytest.mark.parametrize("size", SIZES)


def network_of(size: str) -> CondInst:
    """Of the configuration, on the meta device."""
    content = yaml.safe_load((tiny.CONFIGS / f"rtmdet_ins_{size}.yaml").read_text())["model"]
    network = {"num_classes": 80} | content["network"]
    with torch.device("meta"):
        return build({"network": network, "postprocess": content["postprocess"]})[0].eval()


@each_size
def test_published_tensors_are_those_of_the_configuration(size: str) -> None:
    detector = import_detector(empty_checkpoint(size), size)
    network = network_of(size)
    load_strict(network, detector.state, source=size)
    with torch.device("meta"):
        inferred, _ = build({"network": detector.network, "postprocess": detector.postprocess})
    assert str(inferred) == str(network)
    content = yaml.safe_load((tiny.CONFIGS / f"rtmdet_ins_{size}.yaml").read_text())
    assert content["model"]["postprocess"] == detector.postprocess
    sides = content["data"]["val_short_side"], content["data"]["max_long_side"]
    assert sides == detector.sides
    name = detector.network["backbone"]["name"]
    assert name == content["model"]["network"]["backbone"]["name"]


@each_size
def test_published_parameters_and_multiplications(size: str) -> None:
    """mmdetection computes the tower of classes and boxes twice, and all kernels."""
    network, published = network_of(size), SIZES[size]
    millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    assert millions == pytest.approx(published.parameters, abs=0.05, rel=2e-3)
    image = torch.zeros(1, 3, 640, 640, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        maps = network.pyramid(network.backbone.network(image)[2:])
        features = network.head(maps).controller_features
        network.mask_branch(maps)
        once = counter.get_total_flops()
        network.head.tower(maps)
        for conv, x in zip(network.head.controller, features, strict=True):
            conv(x)
    giga = counter.get_total_flops() / 2e9
    assert giga == pytest.approx(published.flops, rel=0.01)
    assert once / 2e9 < 0.93 * published.flops


@pytest.mark.parametrize("original", [(96, 128), (60, 80)])
def test_an_image_against_the_slow_version(original: tuple[int, int], tmp_path: Path) -> None:
    """Boxes, scores and masks of a whole image, at the size of the input and enlarged."""
    state = checkpoint("tiny", classes=3)
    content = convert(foreign.save({"state_dict": state, "meta": {"epoch": 300}}, tmp_path / "x"))
    content["condseg"] |= {"short_side": 128, "max_long_side": 128}
    restored = restore_content(content, "x")
    predictor = Predictor(restored, "cpu")
    noise = np.random.default_rng(0).integers(0, 255, (3, 4, 3), np.uint8)
    image = np.kron(noise, np.ones((original[0] // 3, original[1] // 4, 1), np.uint8))
    resized = torch.from_numpy(predictor.transform(image=image)["image"]).permute(2, 0, 1)
    expected = rtmdet.predict(state, resized, original)
    found = predictor(image)
    assert len(found.scores) == len(expected.scores) > 20
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-5, rtol=0)
    height, width = original
    limit = torch.tensor([width, height, width, height])
    torch.testing.assert_close(found.boxes, torch.minimum(expected.boxes, limit), atol=1e-3, rtol=0)
    assert found.labels.tolist() == expected.labels.tolist()
    differs = (found.masks != expected.masks) & (expected.logits.abs() > 1e-4)
    assert not differs.any()
    assert 0.05 < expected.masks.float().mean() < 0.95


def without_kernels(state: State) -> None:
    for key in [key for key in state if "kernel" in key or "mask_head" in key]:
        del state[key]


def of_another_size(state: State) -> None:
    state["backbone.stage2.1.blocks.1.conv1.conv.weight"] = torch.zeros(48, 48, 3, 3)


def with_own_convolutions(state: State) -> None:
    state["bbox_head.cls_convs.2.1.conv.weight"] = torch.ones(96, 96, 3, 3)


def with_own_boxes(state: State) -> None:
    state["bbox_head.reg_convs.1.0.bn.bias"] = torch.ones(96)


def with_more(state: State) -> None:
    state["bbox_head.rtm_obj.0.weight"] = torch.ones(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_kernels, r"x is an RTMDet that detects boxes alone .* wanted is an RTMDet-Ins"),
        (
            of_another_size,
            r"has 24 channels in its stem and \(1, 2, 1, 1\) blocks; supported are cspnext_tiny 24 "
            r"\(1, 1, 1, 1\), cspnext_s 32 \(1, 2, 2, 1\)",
        ),
        (with_own_convolutions, r"cls_convs.2.1.conv.weight is not bbox_head.cls_convs.0.1.conv.w"),
        (with_own_boxes, r"reg_convs.1.0.bn.bias is not bbox_head.cls_convs.1.0.bn.bias"),
        (with_more, "RTMDet-Ins: unknown tensor bbox_head.rtm_obj.0.weight"),
    ],
)
def test_what_is_not_supported_is_named(change: Callable[[State], None], message: str) -> None:
    state = empty_checkpoint("tiny")
    change(state)
    with pytest.raises(ValueError, match=message):
        import_detector(state, "x")


def test_records_of_losses_are_read_without_mmengine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in mmengine's checkpoints, in torch's format before 1.6, with its methods by getattr."""

    class HistoryBuffer:
        def __init__(self) -> None:
            self._log_history = np.arange(3.0)
            self.statistics_methods = {"min": HistoryBuffer.min, "mean": np.float64(1.5)}

        def min(self) -> float:
            return 0.0

    module = ModuleType("mmengine.logging.history_buffer")
    module.HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
    HistoryBuffer.__module__ = module.__name__
    HistoryBuffer.__qualname__, HistoryBuffer.min.__qualname__ = (
        "HistoryBuffer",
        "HistoryBuffer.min",
    )
    HistoryBuffer.min.__module__ = module.__name__
    for name in ("mmengine", "mmengine.logging", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    content = {
        "meta": {"epoch": 300, "dataset_meta": {"PALETTE": [(220, 20, 60)]}},
        "state_dict": {"backbone.x": torch.arange(3.0)},
        "message_hub": {"log_scalars": OrderedDict(loss=HistoryBuffer())},
    }
    for zipped in (True, False):
        path = tmp_path / f"{zipped}.pth"
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        with monkeypatch.context() as patch:
            patch.delitem(sys.modules, module.__name__)
            assert read_state(path)["backbone.x"].tolist() == [0, 1, 2]
    torch.save({"a": Hidden()}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="holds getattr, and pickled code is never executed"):
        read_state(tmp_path / "x.pth")


class Hidden:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return getattr, ("", "format")
