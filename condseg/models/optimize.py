"""A network prepared for inference: folded batch norms, channels_last."""

from __future__ import annotations

import copy
import logging
from collections import OrderedDict
from typing import TypeVar

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from condseg.layers.plain import is_static
from condseg.layers.slot import ConvSlot
from condseg.models.backbones.frozen_norm import FrozenBatchNorm2d
from condseg.models.condinst import CondInst

log = logging.getLogger(__name__)
Module = TypeVar("Module", bound=nn.Module)


def optimize_for_inference(network: CondInst) -> CondInst:
    """A copy in evaluation mode that computes the same, but for rounding, in less time.

    The batch norms of backbone and pyramid are folded, and the backbone's maps are in channels_last
    on the CPU. The copy shares all tensors that it does not replace with the network, which stays
    as it is.
    """
    optimized = copy_modules(network).eval()
    for part in (optimized.backbone.network, optimized.pyramid):
        fold_norms_(part)
    optimized.backbone.channels_last = True
    return optimized


def copy_modules(module: Module) -> Module:
    """A copy of the modules with the same tensors."""
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        leaf = isinstance(m, (nn.Conv2d, _BatchNorm, ConvSlot))
        return leaf or super().is_leaf_module(m, module_qualified_name)


@torch.no_grad()
def fold_norms_(network: nn.Module) -> int:
    r"""Fold batch norms in evaluation into the convolutions before them, in place.

    .. math:: \gamma\frac{W * x + b - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta
        = W' * x + b', \quad W' = \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}} W

    Static convolutions get new parameters; a dynamic layer folds a norm itself, if it can
    (:meth:`ConvSlot.fold_norm_`). The activation of timm's norms is kept. A network that torch.fx
    cannot trace is left unchanged, which is logged.

    ``torch.fx.experimental.optimization.fuse`` supports neither timm's convolutions and norms nor
    dynamic layers.

    Args:
        network: in evaluation mode.

    Returns:
        The number of norms that were folded.
    """
    modules = dict(network.named_modules())
    if not any(isinstance(module, _BatchNorm) for module in modules.values()):
        return 0
    try:
        nodes = list(_Tracer().trace(network).nodes)
    except Exception as error:  # a network may do anything with the tracer's proxies
        log.info("batch norms of %s are not folded: %s", type(network).__name__, error)
        return 0
    called = [node.target for node in nodes if node.op == "call_module"]
    once = [n for n in nodes if n.op == "call_module" and called.count(n.target) == 1 and n.args]
    folded = 0
    for node in once:
        before = node.args[0]
        if before not in once or len(before.users) != 1:
            continue
        norm = modules[str(node.target)]
        rest = _rest_of_norm(norm)
        if rest is not None and _fold(network, str(before.target), norm):
            network.set_submodule(str(node.target), rest.eval())
            folded += 1
    return folded


def _fold(network: nn.Module, name: str, norm: nn.Module) -> bool:
    """Fold a norm into the convolution of that name; whether it could be."""
    conv = network.get_submodule(name)
    assert isinstance(norm, _BatchNorm)
    if isinstance(conv, ConvSlot):
        return conv.fold_norm_(norm)
    if not is_static(conv):
        return False
    fused = fuse_conv_bn_eval(conv, norm)
    conv.weight, conv.bias = fused.weight, fused.bias
    return True


def _rest_of_norm(norm: nn.Module) -> nn.Module | None:
    """What a batch norm does besides normalizing; None if it cannot be folded."""
    if not isinstance(norm, _BatchNorm) or norm.training or norm.running_mean is None:
        return None
    if type(norm).__name__ == "BatchNormAct2d":
        # Under their old names, by which Backbone.train finds them.
        parts = {name: norm.get_submodule(name) for name in ("drop", "act")}
        return nn.Sequential(OrderedDict(parts))
    return nn.Identity() if type(norm) in (nn.BatchNorm2d, FrozenBatchNorm2d) else None
