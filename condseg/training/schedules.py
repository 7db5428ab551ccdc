"""Learning-rate schedules: a linear warm-up, then steps or half a cosine.

Each is a closed formula of the optimizer step, so a resumed run has the same rates to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

OptimizerFactory = Callable[[Iterable[dict[str, Any]]], Optimizer]
"""Parameter groups -> optimizer; in YAML the class path of an optimizer with its own knobs."""

ScheduleFactory = Callable[[Optimizer, int], LRScheduler]
"""(optimizer, number of optimizer steps of the run) -> schedule."""


class Warmup(LRScheduler):
    """A learning rate that is a function of the step: base rate x warm-up x decay.

    The warm-up grows linearly from ``warmup_factor`` at step 0 to 1 at ``warmup_steps``.

    Args:
        optimizer: whose groups' rates are set.
        total_steps: optimizer steps of the whole run.
        warmup_steps: steps until the full rate.
        warmup_factor: share of the rate at step 0.

    Raises:
        ValueError: where a number is out of its range.
    """

    def __init__(
        self, optimizer: Optimizer, total_steps: int, warmup_steps: int, warmup_factor: float
    ) -> None:
        if total_steps < 1:
            raise ValueError(f"total_steps is {total_steps}; a run has at least 1 step")
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps is {warmup_steps}; 0 or more is allowed")
        if not 0 <= warmup_factor <= 1:
            raise ValueError(f"warmup_factor is {warmup_factor}; 0 to 1 is allowed")
        self.total_steps = total_steps
        self.warmup_steps = warmup_steps
        self.warmup_factor = warmup_factor
        super().__init__(optimizer)

    def decay(self, step: int) -> float:
        """Share of the base rate at a step, without the warm-up."""
        raise NotImplementedError

    def get_lr(self) -> list[float | Any]:
        step = self.last_epoch  # torch counts steps under this name
        warmup = 1.0
        if step < self.warmup_steps:
            done = step / self.warmup_steps
            warmup = self.warmup_factor * (1 - done) + done
        return [rate * warmup * self.decay(step) for rate in self.base_lrs]


class WarmupMultiStep(Warmup):
    """Warm-up, then the rate is multiplied by ``gamma`` at each milestone.

    Args:
        optimizer: whose groups' rates are set.
        total_steps: optimizer steps of the whole run.
        milestones: steps at which the rate falls, ascending.
        gamma: factor of each fall.
        warmup_steps: steps until the full rate.
        warmup_factor: share of the rate at step 0.

    Raises:
        ValueError: where the milestones do not ascend or a number is out of its range.

    Source: CondInst (arXiv 2003.05664), section 4: 90K iterations, rate divided by 10 at 60K and
    80K; the warm-up is that of the official configuration (1000 iterations from 0.001).
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        milestones: tuple[int, ...] = (60_000, 80_000),
        gamma: float = 0.1,
        warmup_steps: int = 1000,
        warmup_factor: float = 0.001,
    ) -> None:
        if list(milestones) != sorted(set(milestones)):
            raise ValueError(f"milestones are {list(milestones)}; they must ascend")
        self.milestones = list(milestones)
        self.gamma = gamma
        super().__init__(optimizer, total_steps, warmup_steps, warmup_factor)

    def decay(self, step: int) -> float:
        return self.gamma ** sum(step >= milestone for milestone in self.milestones)


class WarmupCosine(Warmup):
    """Warm-up, then half a cosine from the base rate down to ``final_factor`` of it.

    ``decay(t) = f + (1 - f) (1 + cos(pi t)) / 2`` with t from 0 at the end of the warm-up, or of
    the flat part if that is later, to 1 at the last step.

    Args:
        optimizer: whose groups' rates are set.
        total_steps: optimizer steps of the whole run.
        warmup_steps: steps until the full rate.
        warmup_factor: share of the rate at step 0.
        final_factor: share of the rate at the end.
        flat: share of the run before the rate begins to fall.

    Raises:
        ValueError: where a number is out of its range.

    Source: SGDR (arXiv 1608.03983), equation 5, without restarts; flat for half of the run in
    RTMDet (arXiv 2212.07784).
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        warmup_steps: int = 1000,
        warmup_factor: float = 0.001,
        final_factor: float = 0.0,
        flat: float = 0.0,
    ) -> None:
        for name, value in (("final_factor", final_factor), ("flat", flat)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; 0 to 1 is allowed")
        self.final_factor = final_factor
        self.flat = flat
        super().__init__(optimizer, total_steps, warmup_steps, warmup_factor)

    def decay(self, step: int) -> float:
        start = max(self.warmup_steps, self.flat * self.total_steps)
        t = min(max(step - start, 0) / max(self.total_steps - start, 1), 1.0)
        return self.final_factor + (1 - self.final_factor) * (1 + math.cos(math.pi * t)) / 2
