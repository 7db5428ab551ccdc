"""Batch norms folded into the convolutions before them, for evaluation.

``torch.fx.experimental.optimization.fuse`` does so, too, but reads neither timm's convolutions and
norms nor dynamic ones, and gives a graph in place of the network.
"""

from __future__ import annotations

import copy
import logging
from typing import TypeVar

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from condseg.layers.odconv import ODConv2d
from condseg.layers.slot import ConvSlot, is_static
from condseg.models.backbones.frozen_norm import FrozenBatchNorm2d

log = logging.getLogger(__name__)
Module = TypeVar("Module", bound=nn.Module)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        leaf = isinstance(m, (nn.Conv2d, _BatchNorm, ConvSlot))
        return leaf or super().is_leaf_module(m, module_qualified_name)


def share(module: Module) -> Module:
    """A copy of the modules that has the same tensors."""
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})


@torch.no_grad()
def fold_norms_(network: nn.Module) -> int:
    r"""Fold batch norms in evaluation into the convolutions before them, in place.

    Static ones and ODConv's, whose kernels all have the same bias and are scaled alike.

    .. math:: \gamma\frac{W * x + b - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta
        = W' * x + b', \quad W' = \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}} W

    What the network computes stays the same but for rounding. The convolutions get new parameters;
    of a norm its activation is left (timm's have one). A network whose forward pass cannot be
    read without running it stays as it is.

    Args:
        network: in evaluation.

    Returns:
        How many norms are gone.
    """
    modules = dict(network.named_modules())
    try:
        nodes = list(_Tracer().trace(network).nodes)
    except Exception as error:  # whatever a network does with a stand-in for a tensor
        log.info("batch norms of %s are not folded: %s", type(network).__name__, error)
        return 0
    called = [node.target for node in nodes if node.op == "call_module"]
    folded = 0
    for node in nodes:
        before = node.args[0] if node.args else None
        if node.op != "call_module" or not isinstance(before, fx.Node):
            continue
        conv, norm = modules.get(str(before.target)), modules[str(node.target)]
        dynamic = isinstance(conv, ODConv2d)
        if before.op != "call_module" or conv is None or not (dynamic or is_static(conv)):
            continue
        left = _behind(norm)
        alone = len(before.users) == 1 == called.count(before.target) == called.count(node.target)
        if left is None or not alone:
            continue
        assert isinstance(norm, _BatchNorm)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        kernel = conv.weight.transpose(0, 1) if dynamic else conv.weight  # outputs first
        kernel, conv.bias = fuse_conv_bn_weights(
            kernel,
            conv.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
        )
        conv.weight = nn.Parameter(kernel.transpose(0, 1).contiguous()) if dynamic else kernel
        parent, _, name = str(node.target).rpartition(".")
        setattr(network.get_submodule(parent), name, left)
        folded += 1
    return folded


def _behind(norm: nn.Module) -> nn.Module | None:
    """What a batch norm does besides; None where it cannot be folded."""
    if not isinstance(norm, _BatchNorm) or norm.training or norm.running_mean is None:
        return None
    if type(norm).__name__ == "BatchNormAct2d":
        return nn.Sequential(norm.get_submodule("drop"), norm.get_submodule("act"))
    return nn.Identity() if type(norm) in (nn.BatchNorm2d, FrozenBatchNorm2d) else None
