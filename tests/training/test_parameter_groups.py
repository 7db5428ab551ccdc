"""Every trained parameter is in one group; attentions are found in every dynamic layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from condseg.layers import CondConv2d, DyConv2d, DyNetConv2d, ODConv2d
from condseg.training.parameter_groups import parameter_groups, scale_learning_rates

# The modules that compute each layer's attentions.
LAYERS = {ODConv2d: "attention", DyConv2d: "attention", CondConv2d: "routing_fn"}
LAYERS |= {DyNetConv2d: "coefficient_fn"}


def network(layer: type[Any]) -> nn.ModuleDict:
    backbone = nn.Sequential(layer(8, 8, 3, num_experts=2), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1))
    return nn.ModuleDict({"backbone": backbone, "head": nn.Conv2d(8, 2, 1)})


@pytest.mark.parametrize("layer", LAYERS)
def test_attention_lr(layer: type[Any]) -> None:
    model = network(layer)
    optimizer = torch.optim.SGD(parameter_groups(model), lr=1.0)
    scale_learning_rates(optimizer, backbone=0.5, attention=0.25)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    attention = f"backbone.0.{LAYERS[layer]}."
    for name, parameter in model.named_parameters():
        expected = 0.125 if name.startswith(attention) else 0.5 if "backbone" in name else 1.0
        assert rates[id(parameter)] == expected, name


def test_groups_of_odconv() -> None:
    """Their order is that of the optimizer states in checkpoints."""
    model = network(ODConv2d)
    model["head"].bias.requires_grad_(False)
    groups = parameter_groups(model)
    names = {id(p): name for name, p in model.named_parameters()}
    members = {group["name"]: [names[id(p)] for p in group["params"]] for group in groups}
    attention = members.pop("backbone attention")
    assert members == {
        "backbone": [f"backbone.{name}" for name in ("0.weight", "0.bias", "2.weight", "2.bias")],
        "backbone attention norm": [f"backbone.0.attention.bn.{p}" for p in ("weight", "bias")],
        "backbone norm": ["backbone.1.weight", "backbone.1.bias"],
        "other": ["head.weight"],
    }
    expected = [n for n in names.values() if "attention" in n and "bn" not in n]
    assert attention == expected
    order = ["backbone", "backbone attention", "backbone attention norm", "backbone norm", "other"]
    assert [group["name"] for group in groups] == order
    for group in groups:
        assert ("weight_decay" in group) == ("norm" in group["name"])


def test_biases_without_weight_decay() -> None:
    model = network(ODConv2d)
    names = {id(p): name for name, p in model.named_parameters()}
    decayed = {
        names[id(p)]
        for group in parameter_groups(model, decay_biases=False)
        for p in group["params"]
        if "weight_decay" not in group
    }
    biases = {name for name in names.values() if name.endswith("bias")}
    norms = {name for name in names.values() if ".bn." in name or name.startswith("backbone.1.")}
    assert decayed == set(names.values()) - biases - norms
    assert len(decayed) < len(names)
