"""A training step: beside its published form, and by stage."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from condseg.inference.stages import Stages
from condseg.models import CondInst, Criterion, MaskLoss
from condseg.structures import Batch
from condseg.training.parameter_groups import parameter_groups
from studies.benchmarks import subjects
from studies.benchmarks.compare import FAST, PUBLISHED, Comparison, Line
from studies.benchmarks.inputs import Shapes, batch
from studies.benchmarks.page import stage_cells
from studies.measure import Run
from studies.published import published_form

STAGES = ("pre-process", "backbone", "FPN", "heads", "mask head", "losses", "backward", "optimizer")


class Trainer:
    """A network and its optimizer, whose learning rate is zero, so that all steps are alike."""

    def __init__(self, network: CondInst, batch: Batch) -> None:
        self.network, self.batch = network.train(), batch
        self.criterion = Criterion(network.head.default_loss(), MaskLoss())
        self.optimizer = torch.optim.SGD(parameter_groups(network), lr=0.0, momentum=0.9)

    def step(self, stages: Stages) -> list[Tensor]:
        """Losses and gradient norm of a step."""
        with stages("losses"):
            dense = self.network(self.batch.images, self.batch.sizes)
            losses = list(self.criterion(dense, self.batch, self.network.mask_logits).values())
            total = torch.stack(losses).sum()
        with stages("backward"):
            total.backward()
        with stages("optimizer"):
            trained = [p for p in self.network.parameters() if p.requires_grad]
            norm = clip_grad_norm_(trained, 10.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return [*(loss.detach() for loss in losses), norm]

    def timed_step(self, device: torch.device) -> dict[str, float]:
        """Seconds of each stage of a step."""
        stages, network = Stages(device), self.network
        with stages.timed_calls(
            (network, "forward", "pre-process"),
            (network.backbone, "forward", "backbone"),
            (network.pyramid, "forward", "FPN"),
            (network.head, "forward", "heads"),
            (network.mask_branch, "forward", "heads"),
            (network, "mask_logits", "mask head"),
        ):
            self.step(stages)
        return stages.seconds


def comparisons(shapes: Shapes, device: torch.device) -> list[Comparison]:
    """The line of the table about training."""
    h, w = shapes.train
    what = f"training step, CondInst {shapes.backbone}, {h}x{w}, batch {shapes.batch}"
    line = Line(what, faster=1.5, memory=0.7)
    return [Comparison("training step", partial(steps, shapes, device), (line,))]


def trainers(shapes: Shapes, device: torch.device) -> dict[str, Trainer]:
    """The two forms with the same weights and images."""
    fast = subjects.condinst(shapes, device)
    images = batch(shapes.train, shapes.batch, shapes.objects).to(device)
    return {FAST: Trainer(fast, images), PUBLISHED: Trainer(published_form(fast), images)}


def steps(shapes: Shapes, device: torch.device) -> dict[str, Run]:
    """Forward, losses, backward, clipping and optimizer."""
    untimed = Stages(torch.device("cpu"))  # does not synchronise
    return {name: partial(t.step, untimed) for name, t in trainers(shapes, device).items()}


def stages(shapes: Shapes, device: torch.device) -> dict[str, dict[str, str]]:
    """Stage -> side -> median milliseconds of a step, and their share."""
    sides = trainers(shapes, device)
    return stage_cells({name: partial(t.timed_step, device) for name, t in sides.items()}, STAGES)
