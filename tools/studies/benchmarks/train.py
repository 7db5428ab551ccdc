"""A training step: beside its published form, and where its time goes."""

from __future__ import annotations

import argparse
import copy
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from condseg.inference.stages import Stages
from condseg.layers import set_implementation
from condseg.models.condinst import CondInst
from condseg.models.losses.criterion import Criterion
from condseg.structures import Batch
from condseg.training.parameter_groups import parameter_groups
from studies.benchmarks import subjects
from studies.benchmarks.compare import FAST, REFERENCE, Comparison, Line
from studies.benchmarks.measure import Run
from studies.benchmarks.report import stage_table
from studies.benchmarks.session import Session
from studies.benchmarks.subjects import Shapes

STAGES = ("pre-process", "backbone", "FPN", "heads", "mask head", "losses", "backward", "optimizer")


@dataclass(frozen=True, slots=True)
class Trainer:
    """A network with what a step needs.

    Its learning rate is zero: the optimizer does all its work, and every step is alike.
    """

    network: CondInst
    batch: Batch
    criterion: Criterion
    optimizer: torch.optim.Optimizer

    @classmethod
    def of(cls, network: CondInst, batch: Batch) -> Trainer:
        """With the default optimizer of the configurations."""
        optimizer = torch.optim.SGD(parameter_groups(network), lr=0.0, momentum=0.9)
        return cls(network.train(), batch, Criterion(), optimizer)

    def step(self, stages: Stages) -> list[Tensor]:
        """The losses and the gradients' norm."""
        with stages("losses"):
            dense = self.network(self.batch.images, self.batch.sizes)
            losses = list(self.criterion(self.network, dense, self.batch).values())
            total = torch.stack(losses).sum()
        with stages("backward"):
            total.backward()
        with stages("optimizer"):
            trained = [p for p in self.network.parameters() if p.requires_grad]
            norm = clip_grad_norm_(trained, 10.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return [*(loss.detach() for loss in losses), norm]

    def watched_step(self, device: torch.device) -> dict[str, float]:
        """Seconds of each stage of a step."""
        stages, network = Stages(device), self.network
        with stages.timed_calls(
            (network, "forward", "pre-process"),
            (network.backbone, "forward", "backbone"),
            (network.fpn, "forward", "FPN"),
            (network.head, "forward", "heads"),
            (network.mask_branch, "forward", "heads"),
            (network, "queries", "mask head"),
            (network, "mask_logits", "mask head"),
        ):
            self.step(stages)
        return stages.seconds


def comparisons(shapes: Shapes, device: torch.device) -> list[Comparison]:
    """The table's line about training."""
    h, w = shapes.train
    what = f"training step, CondInst {shapes.backbone}, {h}x{w}, batch {shapes.batch}"
    line = Line(what, faster=1.5, memory=0.7)
    return [Comparison("training step", partial(steps, shapes, device), (line,))]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    Session.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Measure, print, write."""
    session = Session(args)
    session.tables["stage, median ms (share)"] = stages(session.shapes, session.device)
    session.compare(comparisons(session.shapes, session.device))
    session.write("train")


def trainers(shapes: Shapes, device: torch.device) -> dict[str, Trainer]:
    """The two forms with the same weights and pictures."""
    fast = subjects.condinst(shapes, device)
    reference = copy.deepcopy(fast)
    set_implementation(reference, "reference")
    given = subjects.batch(shapes.train, shapes.batch, shapes.objects).to(device)
    return {FAST: Trainer.of(fast, given), REFERENCE: Trainer.of(reference, given)}


def steps(shapes: Shapes, device: torch.device) -> dict[str, Run]:
    """Forward, losses, backward, clipping and optimizer."""
    unwatched = Stages(torch.device("cpu"))  # waits for nothing
    return {name: partial(t.step, unwatched) for name, t in trainers(shapes, device).items()}


def stages(shapes: Shapes, device: torch.device, rounds: int = 5) -> dict[str, dict[str, str]]:
    """Stage -> side -> median milliseconds of a step, and their share."""
    made = trainers(shapes, device)
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in made}
    for _ in range(rounds + 1):
        for name, trainer in made.items():
            rows[name].append(trainer.watched_step(device))
    return stage_table({name: taken[1:] for name, taken in rows.items()}, STAGES)
