"""Differences of pairs of trainings, their confidence intervals, and Holm's correction."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

LEVEL = 0.05
"""Probability of one or more wrong verdicts among all claims, if no variant differs."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The mean difference over pairs with the same seed.

    Attributes:
        mean: of the pairs' differences.
        low, high: its 95 % confidence interval by Student's t distribution; not corrected.
        p: of the two-sided paired t test; not corrected.
        pairs: number of pairs.
    """

    mean: float
    low: float
    high: float
    p: float
    pairs: int


def difference(own: Mapping[int, float], base: Mapping[int, float]) -> Difference | None:
    """The difference of two variants' scores by seed; None with fewer than two common seeds."""
    values = [own[seed] - base[seed] for seed in sorted(own.keys() & base.keys())]
    if len(values) < 2:
        return None
    mean, freedom = statistics.fmean(values), len(values) - 1
    error = statistics.stdev(values) / math.sqrt(len(values))
    half = float(stats.t.ppf(1 - LEVEL / 2, freedom)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, freedom)) if error else float(mean == 0)
    return Difference(mean, mean - half, mean + half, p, len(values))


def holm(values: Sequence[float], claims: int) -> list[float]:
    """P values corrected for the number of claims (Holm 1979), in the order given.

    Args:
        values: p values of the claims tested so far.
        claims: number of all claims; those not tested yet count as having larger p values.
    """
    corrected, largest = [0.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (claims - rank) * values[index]))
        corrected[index] = largest
    return corrected


def verdict(mean: float, corrected: float) -> str:
    """What a claim's corrected p value shows."""
    if corrected >= LEVEL:
        return "no difference shown"
    return "better" if mean > 0 else "worse"
