"""A network in the form that is exported."""

from __future__ import annotations

import torch
from torch import nn

from condseg.layers.plain import timm_same_conv
from condseg.models.condinst import CondInst
from condseg.models.optimize import optimize_for_inference


def prepared(network: CondInst) -> CondInst:
    """A copy in its fast form, without what only PyTorch on the CPU gains by."""
    fast = optimize_for_inference(network)
    fast.backbone.channels_last = False
    _pad_statically(fast.backbone)
    return fast


def _pad_statically(module: nn.Module) -> None:
    """TensorFlow's SAME padding of sizes that the stride divides, which the input's are.

    timm computes it from the size, in floats, which an export with any size cannot follow.
    """
    same = timm_same_conv()
    for name, conv in list(module.named_modules()):
        if same is None or type(conv) is not same:
            continue
        axes = zip(conv.kernel_size, conv.stride, conv.dilation, strict=True)
        totals = [max((k - 1) * d + 1 - s, 0) for k, s, d in axes]
        sides = [side for total in reversed(totals) for side in (total // 2, total - total // 2)]
        with torch.device("meta"):
            plain = nn.Conv2d(
                *(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, 0),
                *(conv.dilation, conv.groups, conv.bias is not None),
            )
        plain.weight, plain.bias = conv.weight, conv.bias
        module.set_submodule(name, nn.Sequential(nn.ZeroPad2d(tuple(sides)), plain))
