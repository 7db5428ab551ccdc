"""Learning-rate schedules: a linear warm-up, then steps or half a cosine.

Each rate is a function of the optimizer step alone, so a resumed run uses the same rates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

OptimizerFactory = Callable[[Iterable[dict[str, Any]]], Optimizer]
"""Parameter groups -> optimizer; in YAML the class path of an optimizer and its arguments."""

ScheduleFactory = Callable[[Optimizer, int], LRScheduler]
"""(optimizer, number of optimizer steps of the run) -> schedule."""


class WarmupMultiStep(LambdaLR):
    """Linear warm-up, then the rate is multiplied by ``gamma`` at each milestone.

    Args:
        optimizer: the optimizer.
        total_steps: optimizer steps of the whole run.
        milestones: steps at which the rate falls, ascending.
        gamma: factor at each milestone.
        warmup_steps: steps until the full rate.
        warmup_factor: fraction of the rate at step 0, which grows linearly to 1.

    Raises:
        ValueError: the milestones do not ascend or a number is out of its range.

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
        warmup = _warmup(total_steps, warmup_steps, warmup_factor)

        def factor(step: int) -> float:
            decay: float = gamma ** sum(step >= milestone for milestone in milestones)
            return warmup(step) * decay

        super().__init__(optimizer, factor)


class WarmupCosine(LambdaLR):
    """Linear warm-up, then half a cosine from the base rate down to ``final_factor`` of it.

    ``factor(t) = f + (1 - f) (1 + cos(pi t)) / 2`` with t from 0 at the end of the warm-up, or of
    the flat part if that is later, to 1 at the last step.

    Args:
        optimizer: the optimizer.
        total_steps: optimizer steps of the whole run.
        warmup_steps: steps until the full rate.
        warmup_factor: fraction of the rate at step 0, which grows linearly to 1.
        final_factor: fraction of the rate at the end.
        flat: fraction of the run before the rate begins to fall.

    Raises:
        ValueError: a number is out of its range.

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
        warmup = _warmup(total_steps, warmup_steps, warmup_factor)
        start = max(warmup_steps, flat * total_steps)

        def factor(step: int) -> float:
            t = min(max(step - start, 0) / max(total_steps - start, 1), 1.0)
            cosine = (1 + math.cos(math.pi * t)) / 2
            return warmup(step) * (final_factor + (1 - final_factor) * cosine)

        super().__init__(optimizer, factor)


def _warmup(total_steps: int, warmup_steps: int, warmup_factor: float) -> Callable[[int], float]:
    """The factor that grows linearly from ``warmup_factor`` to 1 in ``warmup_steps``."""
    if total_steps < 1:
        raise ValueError(f"total_steps is {total_steps}; 1 or more is allowed")
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps is {warmup_steps}; 0 or more is allowed")
    if not 0 <= warmup_factor <= 1:
        raise ValueError(f"warmup_factor is {warmup_factor}; 0 to 1 is allowed")

    def factor(step: int) -> float:
        progress = step / warmup_steps if step < warmup_steps else 1.0
        return warmup_factor * (1 - progress) + progress

    return factor
