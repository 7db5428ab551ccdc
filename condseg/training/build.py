"""The LightningModule from a configuration."""

from __future__ import annotations

from condseg.models import CondInst, Criterion, MaskLoss, PostProcess, SemanticLoss
from condseg.models.losses.base import DenseLoss
from condseg.training.module import CondInstModule
from condseg.training.schedules import OptimizerFactory, ScheduleFactory
from condseg.zoo.checkpoint import Network


def build_module(
    network: CondInst,
    mask_loss: MaskLoss,
    postprocess: PostProcess,
    optimizer: OptimizerFactory,
    schedule: ScheduleFactory,
    dense_loss: DenseLoss | None = None,
    backbone_lr: float = 1.0,
    attention_lr: float = 1.0,
    decay_biases: bool = True,
) -> CondInstModule:
    """Build the LightningModule; a configuration's ``model`` has these arguments.

    Args:
        network: the trained network.
        mask_loss: the loss of the masks.
        postprocess: dense predictions -> detections.
        optimizer: builds the optimizer from parameter groups.
        schedule: builds its learning-rate schedule, stepped once per optimizer step.
        dense_loss: the loss of classes and boxes; default: that of the network's head.
        backbone_lr: factor of the backbone's learning rate.
        attention_lr: factor of the attentions' learning rate, in addition to their layers' own.
        decay_biases: whether biases have weight decay; norms have none.

    Raises:
        ValueError: ``dense_loss`` is for another head.
    """
    default = network.head.default_loss()
    loss = default if dense_loss is None else dense_loss
    if loss.predictions is not default.predictions:
        raise ValueError(
            f"model.dense_loss is {type(loss).__name__}; with {type(network.head).__name__} as "
            f"model.network.head, {type(default).__name__} is allowed"
        )
    semantic_loss = SemanticLoss() if network.mask_branch.has_semantic_branch else None
    criterion = Criterion(loss, mask_loss, semantic_loss)
    parts = (network, criterion, postprocess, optimizer, schedule)
    return CondInstModule(*parts, backbone_lr, attention_lr, decay_biases)


# A configuration has the arguments of build_condinst in place of CondInst's parts.
build_module.__annotations__["network"] = Network
