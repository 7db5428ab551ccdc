"""The module that a configuration builds."""

from functools import partial

import pytest
import torch
from support.networks import RTMDET, tiny_condinst

from condseg.models import CondInst, FCOSLoss, MaskLoss, PostProcess, SoftLabelLoss
from condseg.models.losses.base import DenseLoss
from condseg.training.build import build_module
from condseg.training.module import CondInstModule
from condseg.training.schedules import WarmupMultiStep


def build(network: CondInst, dense_loss: DenseLoss | None = None) -> CondInstModule:
    optimizer = partial(torch.optim.SGD, lr=0.1)
    return build_module(
        network, MaskLoss(), PostProcess(), optimizer, WarmupMultiStep, dense_loss=dense_loss
    )


@pytest.mark.parametrize("semantic_loss", [False, True])
def test_losses_are_those_of_the_networks_parts(semantic_loss: bool) -> None:
    fcos = build(tiny_condinst(semantic_loss=semantic_loss)).criterion
    assert isinstance(fcos.dense_loss, FCOSLoss)
    assert (fcos.semantic_loss is not None) == semantic_loss
    assert isinstance(build(tiny_condinst(**RTMDET)).criterion.dense_loss, SoftLabelLoss)
    loss = FCOSLoss(box_loss="linear_iou")
    assert build(tiny_condinst(), loss).criterion.dense_loss is loss


@pytest.mark.parametrize(
    ("options", "loss", "message"),
    [
        ({}, SoftLabelLoss(), "SoftLabelLoss; with FCOSHead .*, FCOSLoss is allowed"),
        (RTMDET, FCOSLoss(), "FCOSLoss; with RTMDetHead .*, SoftLabelLoss is allowed"),
    ],
    ids=["fcos", "rtmdet"],
)
def test_the_loss_of_another_head_is_refused(
    options: dict[str, object], loss: DenseLoss, message: str
) -> None:
    with pytest.raises(ValueError, match=f"model.dense_loss is {message}"):
        build(tiny_condinst(**options), loss)
