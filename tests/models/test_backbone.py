"""Backbones: the maps, the frozen parts, normalisation, and the start of the dynamic ones."""

from __future__ import annotations

import copy
import functools
from pathlib import Path

import pytest
import torch
import torchvision
from jsonargparse import ArgumentParser
from studies.published import published_form
from torch import Tensor, nn

from condseg.layers import ConvFactory, ConvSlot, DyConv2d, ODConv2d
from condseg.models.backbones.backbone import Backbone
from condseg.models.backbones.frozen_norm import FrozenBatchNorm2d
from condseg.models.backbones.resnet import BLOCKS, ResNet


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
        maps = backbone(backbone.normalize(pixels(2, 64, 96)))
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
    torch_like = small().normalize(image).flatten()
    expected = [(1 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, (0 - 0.406) / 0.225]
    torch.testing.assert_close(torch_like, torch.tensor(expected))
    caffe = small(style="caffe").normalize(image).flatten()
    torch.testing.assert_close(
        caffe, torch.tensor([0 - 103.53, 128 - 116.28, 255 - 123.675]), rtol=1e-6, atol=1e-6
    )
    lite = Backbone("tf_efficientnet_lite0", None).normalize(image).flatten()
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
        ("hrnet_w18_small", {}, "no module stem, the end of its stage 1: freeze_stages must be 0"),
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


OD4 = functools.partial(ODConv2d, num_experts=4)
OD1 = functools.partial(ODConv2d, num_experts=1)


@pytest.mark.parametrize(
    ("name", "conv"),
    [("resnet18", OD4), ("resnet18", DyConv2d), ("resnet50", OD4), ("tf_efficientnet_lite0", OD1)],
)
@pytest.mark.parametrize("where", ["paper", [4, 5]])
def test_a_dynamic_backbone_starts_as_the_static_one(
    name: str, conv: ConvFactory, where: str | list[int], tmp_path: Path
) -> None:
    options = {"width": 8, "stem_width": 8} if name in BLOCKS else {}
    static = Backbone(name, None, **options).eval()
    randomise(static)
    file = tmp_path / "static.pth"
    torch.save(static.network.state_dict(), file)
    dynamic = Backbone(name, str(file), conv=conv, where=where, **options).eval()
    assert any(isinstance(m, ConvSlot) for m in dynamic.modules())
    with torch.no_grad():
        x = torch.randn(2, 3, 64, 80)
        for got, want in zip(dynamic(x), static(x), strict=True):
            assert (got - want).abs().max() <= 1e-5 * want.abs().max()


def dynamic_names(conv: ConvFactory = OD4, **options: object) -> set[str]:
    network = small(conv=conv, **options).network
    return {name for name, m in network.named_modules() if isinstance(m, ConvSlot)}


def test_which_convolutions_become_dynamic() -> None:
    convs = {f"layer{i}.{j}.conv{k}" for i in range(1, 5) for j in (0, 1) for k in (1, 2)}
    assert dynamic_names() == convs
    assert dynamic_names(where=[4, 5]) == {n for n in convs if n.startswith(("layer3", "layer4"))}
    # By DyConv's paper shortcuts are dynamic, too.
    last = {"layer4.0.downsample.0", *(name for name in convs if name.startswith("layer4"))}
    assert dynamic_names(DyConv2d, where=[5]) == last
    assert dynamic_names(where=["layer4.0.conv2"]) == {"layer4.0.conv2"}
    with pytest.raises(ValueError, match=r"where=\[7\]: the network has the stages"):
        dynamic_names(where=[7])
    with pytest.raises(ValueError, match="where='layer9'"):
        dynamic_names(where=["layer9"])


@pytest.mark.parametrize("batch", [1, 2])
def test_what_is_dynamic_trains_and_the_rest_stays_frozen(batch: int) -> None:
    backbone = small(conv=OD4).train()
    sum(m.square().mean() for m in backbone(torch.rand(batch, 3, 64, 64))).backward()
    layer = backbone.network.layer1[0].conv1
    assert layer.training
    assert layer.attention.bn.training
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
    assert layer.weight.grad.abs().max() > 0
    assert not backbone.network.layer4[0].bn1.training
    for parameter in (backbone.network.conv1.weight, backbone.network.layer3[0].bn1.weight):
        assert not parameter.requires_grad
    assert backbone.network.layer3[0].downsample[0].weight.requires_grad


def test_nn_conv2d_fits_the_slot_and_stays_frozen() -> None:
    backbone = small(conv=nn.Conv2d)
    assert not backbone.network.layer1[0].conv1.weight.requires_grad


def test_a_dynamic_backbone_from_a_config() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Backbone, "backbone")
    for where in ("[4, 5]", "[layer3, layer4]", "paper"):
        config = parser.parse_args(
            [
                "--backbone.name=resnet18",
                "--backbone.weights=null",
                "--backbone.width=8",
                "--backbone.stem_width=8",
                f"--backbone.where={where}",
                "--backbone.conv=condseg.layers.ODConv2d",
                "--backbone.conv.num_experts=2",
            ]
        )
        backbone = parser.instantiate(config).backbone
        assert backbone.network.layer4[1].conv2.weight.shape == (2, 64, 64, 3, 3)


@pytest.mark.parametrize("frozen", [0, 1, 2, 5])
@pytest.mark.parametrize("conv", [None, OD4])
def test_layout_in_memory(frozen: int, conv: ConvFactory | None) -> None:
    """Plain where dynamic layers train; channels_last before them, and in evaluation if asked."""
    backbone = small(conv=conv, freeze_stages=frozen, norm="batch")
    layouts: dict[str, bool] = {}
    for name in ("conv1", "layer1", "layer2"):
        backbone.network.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: layouts.update(
                {name: output.is_contiguous(memory_format=torch.channels_last)}
            )
        )
    x = torch.randn(2, 3, 64, 96)
    trained = backbone.train()(x)
    # Dynamic layers train in frozen stages, too: only the stem of ODConv's network is frozen.
    ends = {"conv1": 1, "layer1": 3, "layer2": 4}
    last = min(frozen, 1) if conv else 4
    assert layouts == {name: last >= end for name, end in ends.items()}
    backbone.eval()
    with torch.no_grad():
        for expected in (False, True):
            backbone.channels_last = expected
            backbone(x)
            assert set(layouts.values()) == {expected}
    backbone.channels_last = False
    assert [m.shape[1] for m in trained] == list(backbone.out_channels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frozen_norms(dtype: torch.dtype) -> None:
    """They are batch norms in evaluation, and keep no map for a gradient that nobody wants."""
    torch.manual_seed(0)
    backbone = small(freeze_stages=0)
    norm = backbone.network.bn1
    assert isinstance(norm, FrozenBatchNorm2d)
    randomise(backbone.network)
    backbone.train()
    reference = published_form(norm)
    x = torch.randn(2, 8, 6, 5, dtype=dtype, requires_grad=True)
    results = []
    for each in (norm, reference):
        y = each(x)
        assert y.dtype == dtype
        results.append((y, *torch.autograd.grad(y, x, torch.ones_like(y))))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)
    kept: list[Tensor] = []
    if dtype == torch.float32:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            norm(x)
        assert max(t.numel() for t in kept) == 8
    state = backbone.network.state_dict()
    assert state.keys() == ResNet("resnet18", 8, 8).state_dict().keys()
