"""Which parameters train with which learning rate and weight decay."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from condseg.layers import ConvSlot

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def parameter_groups(network: nn.Module, decay_biases: bool = True) -> list[dict[str, Any]]:
    """The trained parameters in groups, named by "backbone", "attention" and "norm".

    Without ``decay_biases``, biases are named by "bias" too, and have no weight decay.
    Attentions are grouped by ``layer_lr`` too, the factor that their layers ask for. Norms have no
    weight decay, as in the official training (detectron2's ``WEIGHT_DECAY_NORM``); biases have it,
    as there.
    """
    layers = [module for module in network.modules() if isinstance(module, ConvSlot)]
    attention = {id(p): each.attention_lr for each in layers for p in each.attention_parameters()}
    groups: dict[tuple[str, float], dict[str, Any]] = {}
    for path, module in network.named_modules():
        norm = isinstance(module, NORMS)
        for own, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            bias = own == "bias" and not norm and not decay_biases
            labels = {
                "backbone": path.startswith("backbone"),
                "attention": id(parameter) in attention,
                "norm": norm,
                "bias": bias,
            }
            name = " ".join(label for label, applies in labels.items() if applies) or "other"
            factor = attention.get(id(parameter), 1.0)
            empty = {"params": [], "name": name, "layer_lr": factor}
            group = groups.setdefault((name, factor), empty)
            group["params"].append(parameter)
            if norm or bias:
                group["weight_decay"] = 0.0
    return list(groups.values())


def scale_learning_rates(optimizer: Optimizer, backbone: float, attention: float) -> None:
    """Multiplies the learning rates of an optimizer of :func:`parameter_groups`.

    Args:
        optimizer: the optimizer.
        backbone: factor for the backbone.
        attention: factor for attentions, in addition to that and to their layers' own.
    """
    for group in optimizer.param_groups:
        group["lr"] *= group["layer_lr"]
        if "backbone" in group["name"]:
            group["lr"] *= backbone
        if "attention" in group["name"]:
            group["lr"] *= attention
