"""Backbones: maps, normalization, frozen parts, dynamic convolutions, memory formats."""

import copy
import functools
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from jsonargparse import ArgumentParser
from studies.published import published_form
from support.networks import noise, randomize_norms, tiny_backbone
from torch import Tensor, nn

from condseg.layers import ConvFactory, ConvSlot, DyConv2d, ODConv2d
from condseg.models import Backbone
from condseg.models.backbones.frozen_norm import FrozenBatchNorm2d
from condseg.models.backbones.resnet import BLOCKS, ResNet

lite = functools.partial(Backbone, "tf_efficientnet_lite0")
convnext = functools.partial(Backbone, "convnext_atto")
csp = functools.partial(Backbone, "cspnext_tiny")
OD1, OD4 = (functools.partial(ODConv2d, num_experts=n) for n in (1, 4))


def backward(backbone: Backbone, images: Tensor) -> None:
    sum(x.square().mean() for x in backbone(images)).backward()


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("resnet18", (128, 256, 512)),
        ("resnet34", (128, 256, 512)),
        ("resnet50", (512, 1024, 2048)),
        ("tf_efficientnet_lite0", (40, 112, 320)),
        ("timm:resnet18", (128, 256, 512)),
        ("cspnext_tiny", (96, 192, 384)),
        ("convnext_atto", (80, 160, 320)),
        ("mobilenetv3_small_050", (16, 24, 288)),
        ("swin_tiny_patch4_window7_224", (192, 384, 768)),
    ],
)
def test_maps_have_strides_8_16_32(name: str, channels: tuple[int, ...]) -> None:
    backbone = Backbone(name, None).eval()
    assert backbone.out_channels == channels
    with torch.no_grad():
        maps = backbone(backbone.normalize(noise(2, (64, 96))))
    expected = [(2, c, 64 // s, 96 // s) for c, s in zip(channels, (8, 16, 32), strict=True)]
    assert [x.shape for x in maps] == expected


@pytest.mark.parametrize("name", BLOCKS)
def test_resnets_have_torchvisions_tensors(name: str) -> None:
    with torch.device("meta"):
        expected, state = torchvision.models.get_model(name).state_dict(), ResNet(name).state_dict()
    shapes = {k: v.shape for k, v in expected.items() if not k.startswith("fc.")}
    assert {k: v.shape for k, v in state.items()} == shapes


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnets_compute_torchvisions_maps(name: str) -> None:
    network, reference = ResNet(name).eval(), torchvision.models.get_model(name).eval()
    randomize_norms(reference)
    network.load_state_dict({k: reference.state_dict()[k] for k in network.state_dict()})
    x, expected = torch.rand(1, 3, 64, 64), []
    with torch.no_grad():
        maps = network(x)
        for part in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
            x = reference.get_submodule(part)(x)
            expected.append(x)
    torch.testing.assert_close(maps, expected[4:], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("style", "strides"), [("caffe", [(2, 1), (1, 1)]), ("torchvision", [(1, 2), (1, 1)])]
)
def test_style_says_where_a_bottleneck_strides(style: str, strides: list[tuple[int, int]]) -> None:
    blocks = tiny_backbone("resnet50", style=style).network.layer2[:2]
    assert [(block.conv1.stride[0], block.conv2.stride[0]) for block in blocks] == strides


def test_normalization_is_that_of_the_weights() -> None:
    image = torch.tensor([255, 128, 0], dtype=torch.uint8).view(1, 3, 1, 1)
    for backbone, expected in (
        (tiny_backbone(), [(1 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, -0.406 / 0.225]),
        (tiny_backbone(style="caffe"), [-103.53, 128 - 116.28, 255 - 123.675]),
        (lite(weights=None), [1.0, 0.5 / 127.5, -1.0]),
        (csp(weights=None), [-103.53 / 57.375, 11.72 / 57.12, (255 - 123.675) / 58.395]),
    ):
        normalized = backbone.normalize(image).flatten()
        torch.testing.assert_close(normalized, torch.tensor(expected), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_letterbox_pads_with_grey(training: bool) -> None:
    images, sizes = noise(2, (64, 96)), [(64, 96), (50, 70)]
    backbone = csp(weights=None, letterbox=True).train(training)
    x = backbone.prepare(images, sizes)
    assert x.shape == (2, 3, 64 if training else 96, 96)
    expected = torch.full((2, 3, 96, 96), 114, dtype=torch.uint8)
    for image, whole, (h, w) in zip(images, expected, sizes, strict=True):
        whole[:, :h, :w] = image[:, :h, :w]
    torch.testing.assert_close(x, backbone.normalize(expected)[:, :, : x.shape[2]])


def test_without_letterbox_the_padding_is_zero() -> None:
    images, backbone = noise(1, (64, 96)), tiny_backbone()
    x = backbone.prepare(images, [(50, 70)])
    assert x.shape == (1, 3, 64, 96)
    assert not x[:, :, 50:].any()
    assert not x[:, :, :, 70:].any()
    torch.testing.assert_close(x[..., :50, :70], backbone.normalize(images)[..., :50, :70])


@pytest.mark.parametrize(
    ("build", "stages"),
    [
        (tiny_backbone, ("conv1 bn1", "layer1", "layer2", "layer3", "layer4")),
        (lite, ("conv_stem bn1 blocks.0", "blocks.1", "blocks.2", "blocks.3 blocks.4", "blocks.5")),
        (csp, ("stem", "stage1", "stage2", "stage3", "stage4")),
        (convnext, ("", "stem_0 stem_1 stages_0", "stages_1", "stages_2", "stages_3")),
    ],
    ids=["resnet18", "efficientnet", "cspnext", "convnext"],
)
@pytest.mark.parametrize("freeze_stages", [0, 2, 4])
def test_frozen_stages(
    build: Callable[..., Backbone], stages: tuple[str, ...], freeze_stages: int
) -> None:
    backbone = build(weights=None, freeze_stages=freeze_stages, norm="batch").train()
    frozen = [part for stage in stages[:freeze_stages] for part in stage.split()]
    for name, parameter in backbone.network.named_parameters():
        inside = any(name.startswith(f"{part}.") for part in frozen)
        assert parameter.requires_grad == (not inside), name


@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_training_changes_what_is_not_frozen(norm: str) -> None:
    backbone = tiny_backbone(norm=norm)
    randomize_norms(backbone)
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], 0.1)
    for _ in range(2):  # train() after eval(), as a Trainer does
        backbone.eval()
        backbone.train()
        backward(backbone, torch.rand(2, 3, 64, 64))
        optimizer.step()
    changed = {k for k, v in backbone.state_dict().items() if not torch.equal(v, before[k])}
    assert {k.split(".")[1] for k in changed} == {"layer2", "layer3", "layer4"}
    assert any(".bn1." in k for k in changed) == (norm == "batch")
    assert any(".conv1." in k for k in changed)


def test_a_copy_stays_frozen() -> None:
    copied = copy.deepcopy(tiny_backbone()).train()
    assert not any(m.training for m in copied.modules() if isinstance(m, nn.BatchNorm2d))
    assert copied.training


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet51", {}, "nearest: .*resnet50"),
        ("timm:mobilnetv3_small_100", {}, "nearest: mobilenetv3_small_100"),
        ("vit_tiny_patch16_224", {}, r"strides \[16, 16, 16\], needed are \(8, 16, 32\)"),
        ("resnet18", {"freeze_stages": 6}, "freeze_stages=6"),
        ("resnet18", {"weights": "imagenet", "style": "caffe"}, "torchvision's"),
        ("resnet18", {"weights": "imagenet", "width": 8}, "torchvision's"),
        ("maxvit_rmlp_pico_rw_256", {}, r"takes images of one size only \(width \(12\) must be"),
        ("hrnet_w18_small", {}, "no module stem, the end of its stage 1: freeze_stages must be 0"),
        ("tf_efficientnet_lite0", {"style": "caffe"}, "style, width and stem_width are for resnet"),
    ],
)
def test_backbones_that_do_not_exist(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Backbone(name, **{"weights": None, **options})


def test_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"pip install 'condseg\[pretrained\]'"):
        Backbone("tf_efficientnet_lite0")


@pytest.mark.parametrize(
    ("build", "conv", "where"),
    [
        (tiny_backbone, OD4, "paper"),
        (tiny_backbone, DyConv2d, "paper"),
        (tiny_backbone, DyConv2d, [4, 5]),
        (functools.partial(tiny_backbone, "resnet50"), OD4, [4, 5]),
        (lite, OD1, "paper"),
        (lite, OD1, [4, 5]),
    ],
)
@torch.no_grad()
def test_a_dynamic_backbone_starts_as_the_static_one(
    build: Callable[..., Backbone], conv: ConvFactory, where: str | list[int], tmp_path: Path
) -> None:
    static = build(weights=None).eval()
    randomize_norms(static)
    file = tmp_path / "static.pth"
    torch.save(static.network.state_dict(), file)
    dynamic = build(weights=str(file), conv=conv, where=where).eval()
    assert any(isinstance(m, ConvSlot) for m in dynamic.modules())
    x = torch.randn(2, 3, 64, 80)
    for result, expected in zip(dynamic(x), static(x), strict=True):
        assert (result - expected).abs().max() <= 1e-5 * expected.abs().max()


def dynamic_names(conv: ConvFactory = OD4, **options: object) -> set[str]:
    network = tiny_backbone(conv=conv, **options).network
    return {name for name, m in network.named_modules() if isinstance(m, ConvSlot)}


def test_which_convolutions_become_dynamic() -> None:
    convs = {f"layer{i}.{j}.conv{k}" for i in range(1, 5) for j in (0, 1) for k in (1, 2)}
    assert dynamic_names() == convs
    assert dynamic_names(where=[4, 5]) == {n for n in convs if n.startswith(("layer3", "layer4"))}
    # DyConv's paper makes shortcuts dynamic, too.
    last = {"layer4.0.downsample.0", *(name for name in convs if name.startswith("layer4"))}
    assert dynamic_names(DyConv2d, where=[5]) == last
    assert dynamic_names(where=["layer4.0.conv2"]) == {"layer4.0.conv2"}
    with pytest.raises(ValueError, match=r"where=\[7\]: the network has the stages"):
        dynamic_names(where=[7])
    with pytest.raises(ValueError, match="where='layer9'"):
        dynamic_names(where=["layer9"])


@pytest.mark.parametrize("batch", [1, 2])
def test_dynamic_layers_are_trained_in_frozen_stages(batch: int) -> None:
    backbone = tiny_backbone(conv=OD4).train()
    backward(backbone, torch.rand(batch, 3, 64, 64))
    network, layer = backbone.network, backbone.network.layer1[0].conv1
    assert layer.training
    assert layer.attention.bn.training
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
    assert layer.weight.grad.abs().max() > 0
    assert not network.layer4[0].bn1.training
    assert not network.conv1.weight.requires_grad
    assert not network.layer3[0].bn1.weight.requires_grad
    assert network.layer3[0].downsample[0].weight.requires_grad
    static = tiny_backbone(conv=nn.Conv2d).network.layer1[0].conv1
    assert not static.weight.requires_grad


@pytest.mark.parametrize("where", ["[4,5]", "[layer3,layer4]", "paper"])
def test_a_dynamic_backbone_from_a_configuration(where: str) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Backbone, "backbone")
    options = f"name=resnet18 weights=null width=8 stem_width=8 where={where}".split()
    options += ["conv=condseg.layers.ODConv2d", "conv.num_experts=2"]
    parsed = parser.parse_args([f"--backbone.{option}" for option in options])
    backbone = parser.instantiate(parsed).backbone
    assert backbone.network.layer4[1].conv2.weight.shape == (2, 64, 64, 3, 3)


@pytest.mark.parametrize("frozen", [0, 1, 2, 5])
@pytest.mark.parametrize("conv", [None, OD4])
def test_memory_format(frozen: int, conv: ConvFactory | None) -> None:
    """Contiguous where dynamic layers train; channels_last before them, and in eval if asked."""
    backbone = tiny_backbone(conv=conv, freeze_stages=frozen, norm="batch")
    channels_last: dict[str, bool] = {}

    def note(name: str, module: nn.Module, inputs: object, output: Tensor) -> None:
        channels_last[name] = output.is_contiguous(memory_format=torch.channels_last)

    for name in ("conv1", "layer1", "layer2"):
        hook = functools.partial(note, name)
        backbone.network.get_submodule(name).register_forward_hook(hook)
    x = torch.randn(2, 3, 64, 96)
    assert [m.shape[1] for m in backbone.train()(x)] == list(backbone.out_channels)
    # Dynamic layers train in frozen stages, too: only the stem of ODConv's network is frozen.
    ends = {"conv1": 1, "layer1": 3, "layer2": 4}
    last = min(frozen, 1) if conv else 4
    assert channels_last == {name: last >= end for name, end in ends.items()}
    backbone.eval()
    with torch.no_grad():
        for expected in (False, True):
            backbone.channels_last = expected
            backbone(x)
            assert set(channels_last.values()) == {expected}
    published_form(backbone).train()(x)
    assert not any(channels_last.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frozen_norm_computes_the_batch_norm(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    backbone = tiny_backbone(freeze_stages=0).train()
    norm = backbone.network.bn1
    assert isinstance(norm, FrozenBatchNorm2d)
    randomize_norms(norm)
    x = torch.randn(2, 8, 6, 5, dtype=dtype, requires_grad=True)
    results = []
    for each in (norm, published_form(norm)):
        y = each(x)
        assert y.dtype == dtype
        results.append((y, *torch.autograd.grad(y, x, torch.ones_like(y))))
    torch.testing.assert_close(*results)
    saved: list[Tensor] = []
    if dtype == torch.float32:  # no map is saved for the backward
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            norm(x)
        assert max(t.numel() for t in saved) == 8
    assert backbone.network.state_dict().keys() == ResNet("resnet18", 8, 8).state_dict().keys()
