"""The losses that CondInst is trained with."""

from __future__ import annotations

from torch import Tensor, nn

from condseg.models.losses.base import DenseLoss
from condseg.models.losses.masks import MaskLogits, MaskLoss
from condseg.models.losses.semantic import SemanticLoss
from condseg.structures import Batch, DensePredictions


class Criterion(nn.Module):
    """The losses of classes and boxes, of masks and, if there is one, of the semantic branch.

    The dense loss fits the network's head; a semantic loss is for a network with semantic logits.

    Source:
        CondInst (ECCV 2020), equation 4.
    """

    def __init__(
        self,
        dense_loss: DenseLoss,
        mask_loss: MaskLoss,
        semantic_loss: SemanticLoss | None = None,
    ) -> None:
        super().__init__()
        self.dense_loss = dense_loss
        self.mask_loss = mask_loss
        self.semantic_loss = semantic_loss

    def forward(
        self, dense: DensePredictions, batch: Batch, mask_logits: MaskLogits
    ) -> dict[str, Tensor]:
        """The losses by name, whose sum is minimized.

        ``mask_logits`` computes the masks of chosen locations, see ``CondInst.mask_logits``. In
        eval mode there is no semantic loss, as networks then compute no semantic logits.
        """
        losses: dict[str, Tensor]
        assignment, losses = self.dense_loss(dense.head, dense.locations, batch.targets)
        masks = self.mask_loss(dense, assignment, batch, mask_logits)
        losses |= {name: self.dense_loss.mask_weight * loss for name, loss in masks.items()}
        if self.semantic_loss is not None and self.training:
            logits = dense.semantic_logits
            assert logits is not None, "the network has no semantic branch"
            stride = dense.image_size[1] // logits.shape[3]
            losses["loss_semantic"] = self.semantic_loss(logits, batch.targets, stride)
        return losses
