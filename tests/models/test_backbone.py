"""Backbones: the maps, the frozen parts, normalisation, and the start of the dynamic ones."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import Tensor, nn

from condseg.models.backbone import Backbone
from condseg.models.resnet import BLOCKS, ResNet


def small(name: str = "resnet18", **options: object) -> Backbone:
    return Backbone(name, None, width=8, stem_width=8, **options)


@torch.no_grad()
def randomise(network: nn.Module) -> None:
    """Weights and statistics as after a training; the maps keep a size of about one."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.2)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)


def pixels(*shape: int) -> Tensor:
    return torch.randint(0, 256, (*shape[:1], 3, *shape[1:]), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("resnet18", (128, 256, 512)),
        ("resnet34", (128, 256, 512)),
        ("resnet50", (512, 1024, 2048)),
        ("tf_efficientnet_lite0", (40, 112, 320)),
        ("timm:resnet18", (128, 256, 512)),
        ("convnext_atto", (80, 160, 320)),
        ("mobilenetv3_small_050", (16, 24, 288)),
    ],
)
def test_maps_of_strides_8_16_32(name: str, channels: tuple[int, ...]) -> None:
    backbone = Backbone(name, None).eval()
    assert backbone.out_channels == channels
    with torch.no_grad():
        maps = backbone(backbone.normalise(pixels(2, 64, 96)))
    expected = [(2, c, 64 // s, 96 // s) for c, s in zip(channels, (8, 16, 32), strict=True)]
    assert [tuple(m.shape) for m in maps] == expected


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnets_are_torchvisions(name: str) -> None:
    reference = torchvision.models.get_model(name).eval()
    randomise(reference)
    ours = ResNet(name).eval()
    state = {k: v for k, v in reference.state_dict().items() if not k.startswith("fc.")}
    ours.load_state_dict(state, strict=True)
    names = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
    x, expected = torch.rand(1, 3, 64, 64), []
    with torch.no_grad():
        maps = ours(x)
        for part in names:
            x = reference.get_submodule(part)(x)
            expected.append(x)
    for got, want in zip(maps, expected[4:], strict=True):
        assert torch.equal(got, want)


def test_depths() -> None:
    for name, (_, depths) in BLOCKS.items():
        reference = torchvision.models.get_model(name)
        assert depths == tuple(len(reference.get_submodule(f"layer{i}")) for i in range(1, 5))


def test_the_original_bottleneck_strides_first() -> None:
    strides = {
        style: [
            (block.conv1.stride[0], block.conv2.stride[0])
            for block in small("resnet50", style=style).network.layer2[:2]
        ]
        for style in ("caffe", "torchvision")
    }
    assert strides == {"caffe": [(2, 1), (1, 1)], "torchvision": [(1, 2), (1, 1)]}


def test_normalisation_is_that_of_the_weights() -> None:
    image = torch.tensor([255, 128, 0], dtype=torch.uint8).view(1, 3, 1, 1)
    torch_like = small().normalise(image).flatten()
    expected = [(1 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, (0 - 0.406) / 0.225]
    torch.testing.assert_close(torch_like, torch.tensor(expected))
    caffe = small(style="caffe").normalise(image).flatten()
    torch.testing.assert_close(
        caffe, torch.tensor([0 - 103.53, 128 - 116.28, 255 - 123.675]), rtol=1e-6, atol=1e-6
    )
    lite = Backbone("tf_efficientnet_lite0", None).normalise(image).flatten()
    torch.testing.assert_close(lite, torch.tensor([1.0, 0.5 / 127.5, -1.0]))


@pytest.mark.parametrize(
    ("build", "stages"),
    [
        (small, ("conv1 bn1", "layer1", "layer2", "layer3", "layer4")),
        (
            lambda **options: Backbone("tf_efficientnet_lite0", None, **options),
            ("conv_stem bn1 blocks.0", "blocks.1", "blocks.2", "blocks.3 blocks.4", "blocks.5"),
        ),
        (
            lambda **options: Backbone("convnext_atto", None, **options),
            ("", "stem_0 stem_1 stages_0", "stages_1", "stages_2", "stages_3"),
        ),
    ],
)
@pytest.mark.parametrize("freeze_stages", [0, 2, 4])
def test_stages_are_frozen(build, stages, freeze_stages: int) -> None:  # type: ignore[no-untyped-def]
    backbone = build(freeze_stages=freeze_stages, norm="batch").train()
    frozen = [part for stage in stages[:freeze_stages] for part in stage.split()]
    for name, parameter in backbone.network.named_parameters():
        inside = any(name.startswith(f"{part}.") for part in frozen)
        assert parameter.requires_grad == (not inside), name


@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_frozen_norms_stay_as_they_were(norm: str) -> None:
    backbone = small(norm=norm)
    randomise(backbone)
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], 0.1)
    for _ in range(2):  # train() after eval(), as a Trainer does
        backbone.eval()
        backbone.train()
        sum(m.square().mean() for m in backbone(torch.rand(2, 3, 64, 64))).backward()
        optimizer.step()
    changed = {k for k, v in backbone.state_dict().items() if not torch.equal(v, before[k])}
    assert not any(
        k.startswith(("network.conv1", "network.bn1", "network.layer1")) for k in changed
    )
    assert {k.startswith("network.layer") for k in changed} == {True}
    assert any(".bn1." in k for k in changed) == (norm == "batch")
    assert any(".conv1." in k for k in changed)


def test_a_copy_stays_frozen() -> None:
    twin = copy.deepcopy(small()).train()
    assert not any(m.training for m in twin.modules() if isinstance(m, nn.BatchNorm2d))
    assert twin.training


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet51", {}, "nearest: .*resnet50"),
        ("timm:mobilnetv3_small_100", {}, "nearest: mobilenetv3_small_100"),
        ("vit_tiny_patch16_224", {}, r"strides \[16, 16, 16\], needed are \(8, 16, 32\)"),
        ("resnet18", {"freeze_stages": 6}, "freeze_stages=6"),
        ("resnet18", {"weights": "imagenet", "style": "caffe"}, "torchvision's"),
        ("resnet18", {"weights": "imagenet", "width": 8}, "torchvision's"),
        ("tf_efficientnet_lite0", {"style": "caffe"}, "style, width and stem_width are for resnet"),
    ],
)
def test_what_does_not_exist(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Backbone(name, **{"weights": None, **options})


def test_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ValueError, match=r"pip install 'condseg\[pretrained\]'"):
        Backbone("tf_efficientnet_lite0")
