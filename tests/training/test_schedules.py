"""Learning rates at each step."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from condseg.training.schedules import WarmupCosine, WarmupMultiStep

COSINE = [(1 + math.cos(math.pi * t / 4)) / 2 for t in range(5)]


def rates(schedule: type[Any], steps: int, total_steps: int, **arguments: Any) -> list[float]:
    """The rates of the first steps; the base rate is 2."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = schedule(optimizer, total_steps, **arguments)
    values = []
    for _ in range(steps):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return values


@pytest.mark.parametrize(
    ("schedule", "total_steps", "arguments", "expected"),
    [
        (
            WarmupMultiStep,
            9,
            {"milestones": (5, 7), "warmup_steps": 4, "warmup_factor": 0.2, "gamma": 0.1},
            [0.4, 0.8, 1.2, 1.6, 2.0, 0.2, 0.2, 0.02, 0.02],
        ),
        (
            WarmupCosine,
            6,
            {"warmup_steps": 2, "warmup_factor": 0.0, "final_factor": 0.1},
            [0.0, 1.0, *[2 * (0.1 + 0.9 * c) for c in COSINE]],
        ),
        (
            WarmupCosine,
            8,
            {"warmup_steps": 2, "warmup_factor": 0.0, "flat": 0.5},
            [0.0, 1.0, 2.0, 2.0, *[2 * c for c in COSINE]],
        ),
    ],
    ids=["steps", "cosine", "flat, then cosine"],
)
def test_rates(
    schedule: type[Any], total_steps: int, arguments: dict[str, Any], expected: list[float]
) -> None:
    values = rates(schedule, len(expected), total_steps, **arguments)
    assert values == pytest.approx(expected)


@pytest.mark.parametrize(
    ("schedule", "arguments", "message"),
    [
        (WarmupMultiStep, {"milestones": (3, 2)}, r"milestones are \[3, 2\]; they must ascend"),
        (WarmupMultiStep, {"warmup_factor": 2.0}, "warmup_factor is 2.0; 0 to 1 is allowed"),
        (WarmupCosine, {"warmup_steps": -1}, "warmup_steps is -1; 0 or more is allowed"),
        (WarmupCosine, {"final_factor": -0.1}, "final_factor is -0.1; 0 to 1 is allowed"),
        (WarmupCosine, {"flat": 1.5}, "flat is 1.5; 0 to 1 is allowed"),
        (WarmupCosine, {"total_steps": 0}, "total_steps is 0; 1 or more is allowed"),
    ],
)
def test_wrong_arguments(schedule: type[Any], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rates(schedule, 1, **{"total_steps": 10, **arguments})
