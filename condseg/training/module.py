"""The LightningModule: it calls, it does not calculate."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from condseg.evaluation import CocoEvaluator
from condseg.models.condinst import CondInst
from condseg.models.losses.criterion import Criterion
from condseg.models.postprocess import PostProcess
from condseg.structures import Batch
from condseg.training.divergence import CHECK_EVERY, Divergence
from condseg.training.mean_losses import MeanLosses
from condseg.training.parameter_groups import parameter_groups, scale_learning_rates
from condseg.training.schedules import OptimizerFactory, ScheduleFactory
from condseg.zoo.checkpoint import RECIPE


class CondInstModule(LightningModule):
    """Trains a network with a criterion and evaluates it with a post-process.

    Args:
        network: the trained network.
        criterion: its losses.
        postprocess: dense predictions -> detections.
        optimizer: builds the optimizer from parameter groups.
        schedule: builds its learning-rate schedule, stepped once per optimizer step.
        backbone_lr: factor of the backbone's learning rate.
        attention_lr: factor of the attentions' learning rate, in addition to their layers' own.
        decay_biases: whether biases have weight decay.

    Attributes:
        recipe: plain data from which :func:`condseg.zoo.checkpoint.restore` rebuilds the model;
            set by the command line.
    """

    def __init__(
        self,
        network: CondInst,
        criterion: Criterion,
        postprocess: PostProcess,
        optimizer: OptimizerFactory,
        schedule: ScheduleFactory,
        backbone_lr: float = 1.0,
        attention_lr: float = 1.0,
        decay_biases: bool = True,
    ) -> None:
        super().__init__()
        self.network = network
        self.criterion = criterion
        self.postprocess = postprocess
        self.optimizer = optimizer
        self.schedule = schedule
        self.backbone_lr = backbone_lr
        self.attention_lr = attention_lr
        self.decay_biases = decay_biases
        self.recipe: dict[str, Any] | None = None
        self._evaluator: CocoEvaluator | None = None
        self._val_losses = MeanLosses()
        self._divergence = Divergence()

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The losses of a batch by name; their sum is minimised."""
        dense = self.network(batch.images, batch.sizes, batch.depth)
        losses: dict[str, Tensor] = self.criterion(dense, batch, self.network.mask_logits)
        return losses

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        losses = self.loss(batch)
        total = torch.stack(list(losses.values())).sum()
        logged = torch.stack([total, *losses.values()]).detach()
        # Each rank computes its part of the global batch's loss; the log shows the whole.
        logged = self.trainer.strategy.reduce(logged, reduce_op="mean")
        names = ["loss", *losses]
        self._divergence.add_losses(self.global_step, names, logged, batch.infos)
        # Only in steps that are logged, as it waits for the device.
        every = self.trainer.log_every_n_steps or CHECK_EVERY  # type: ignore[attr-defined]
        if self.global_step % min(every, CHECK_EVERY) == 0:
            self._divergence.check()
        for name, value in zip(names, logged, strict=True):
            self.log(f"train/{name}", value, prog_bar=True, batch_size=len(batch))
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.log("train/lr", rate, batch_size=len(batch))
        return total

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if not self._scales_gradients():  # a step with infinite scaled gradients is left out
            gradients = dict(self.named_parameters())
            norm = self._divergence.add_gradients(self.global_step, gradients)
            if norm is not None:
                self.log("train/gradient_norm", norm)

    def on_fit_start(self) -> None:
        """Reads the ground truth, so that errors in it show before the training starts."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        annotations, images = data.val_files
        limit = self.postprocess.max_detections
        self._evaluator = CocoEvaluator(annotations, data.categories, limit, images=images)

    def on_validation_epoch_start(self) -> None:
        assert self._evaluator is not None
        self._evaluator.reset()
        self._val_losses = MeanLosses()

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        assert self._evaluator is not None
        dense = self.network(batch.images, batch.sizes, batch.depth)
        detections = self.postprocess(dense, batch.infos, self.network.mask_logits)
        self._evaluator.update(batch.infos, detections)
        with isolate_rng():  # a loss may choose its locations at random
            losses = self.criterion(dense, batch, self.network.mask_logits)
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if not data.val_dataset.has_masks:
            losses.pop("loss_mask", None)  # it would compare with empty masks
        total = torch.stack(list(losses.values())).sum()
        self._val_losses.update({"loss": total, **losses}, len(batch))
        return {"detections": detections}

    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking:
            return
        assert self._evaluator is not None
        report = self._evaluator.compute()  # over all ranks
        for name, value in report.metrics.items():
            self.log(f"val/{name.replace('/', '_')}", value, rank_zero_only=False)
        for name, value in self._val_losses.compute().items():
            self.log(f"val/{name}", value, rank_zero_only=False)
        for result in report.classes:
            for kind in ("box", "mask"):
                value = result.metrics.get(f"{kind}/AP", -1)
                if value != -1 and len(report.classes) > 1:
                    self.log(f"val_{kind}_AP/{result.name}", value, rank_zero_only=False)
        rank_zero_info(f"\nvalidation after {self.global_step} steps\n{report.table()}\n")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.optimizer(parameter_groups(self.network, self.decay_biases))
        scale_learning_rates(optimizer, self.backbone_lr, self.attention_lr)
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise ValueError("trainer.max_steps and trainer.max_epochs are both -1; set one")
        schedule = self.schedule(optimizer, int(steps))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips as Lightning does, and also for fused optimizers under bfloat16.

        Lightning refuses to clip for fused optimizers under autocast because they unscale float16
        gradients themselves, later; bfloat16 gradients are not scaled.
        """
        by_norm = gradient_clip_algorithm in (None, "norm")
        if optimizer.defaults.get("fused") and by_norm and not self._scales_gradients():
            if gradient_clip_val:
                torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)
            return
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def _scales_gradients(self) -> bool:
        return getattr(self.trainer.precision_plugin, "scaler", None) is not None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the recipe, and refuses weights that are not finite.

        Raises:
            ValueError: a loss, a gradient, a weight or a state of the optimizer is not finite.
        """
        self._divergence.check_checkpoint(checkpoint, self.trainer.strategy)
        if self.recipe is not None:
            checkpoint[RECIPE] = self.recipe
