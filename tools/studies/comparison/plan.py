"""Which trainings there are: those that tune the learning rate, then those with the best one."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studies.comparison.trials import Budget, Trial

TUNING_SEED = 1000
"""The first seed of the tuning; the final trainings count from 0."""


def budget(text: str) -> Budget:
    """A budget from "STEPS:IMAGES"."""
    match = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", text)
    if match is None:
        raise ValueError(f"budgets: {text!r}; STEPS:IMAGES is allowed, such as 600:336")
    return Budget(*map(int, match.groups()))


@dataclass(frozen=True, slots=True)
class Tuning:
    """The learning rates of a variant.

    Attributes:
        scores: rate -> mean mask AP on the tuning images over the tuning seeds; None while
            trainings are missing.
        trials: all of them.
    """

    scores: dict[float, float | None]
    trials: list[Trial]

    @property
    def best(self) -> float | None:
        """The rate with the highest score; None before all are known."""
        known = {rate: score for rate, score in self.scores.items() if score is not None}
        return max(known, key=known.__getitem__) if len(known) == len(self.scores) else None

    @property
    def at_the_edge(self) -> bool:
        """Whether the best rate is the lowest or highest: another might be better."""
        return self.best in (min(self.scores), max(self.scores))


@dataclass(frozen=True, slots=True)
class Plan:
    """All trainings of a comparison.

    Attributes:
        output: folder of the comparison.
        budgets: in their order.
        variants: names, in their order.
        rates: the grid of learning rates, two or more, ascending.
        seeds: final trainings of each variant.
        tuning_seeds: trainings with each rate.
    """

    output: Path
    budgets: tuple[Budget, ...]
    variants: tuple[str, ...]
    rates: tuple[float, ...]
    seeds: int
    tuning_seeds: int

    def tuning(self, budget: Budget, variant: str) -> Tuning:
        """The tuning so far; a grid whose best rate is at an edge is extended there by one rate."""
        tuning = self._tuning(budget, variant, self.rates)
        low, high = self.rates[:2], self.rates[-2:]
        if tuning.best == low[0]:
            return self._tuning(budget, variant, (_rate(low[0] ** 2 / low[1]), *self.rates))
        if tuning.best == high[1]:
            return self._tuning(budget, variant, (*self.rates, _rate(high[1] ** 2 / high[0])))
        return tuning

    def _tuning(self, budget: Budget, variant: str, rates: tuple[float, ...]) -> Tuning:
        scores: dict[float, float | None] = {}
        trials = []
        seeds = range(TUNING_SEED, TUNING_SEED + self.tuning_seeds)
        for rate in rates:
            own = [Trial(self.output, budget, "tuning", variant, rate, seed) for seed in seeds]
            results = [trial.result for trial in own]
            values = [result["metrics"]["mask/AP"] for result in results if result is not None]
            scores[rate] = statistics.fmean(values) if len(values) == len(own) else None
            trials += own
        return Tuning(scores, trials)

    def final(self, budget: Budget, variant: str) -> list[Trial]:
        """The trainings with the best rate; none before it is known."""
        best = self.tuning(budget, variant).best
        if best is None:
            return []
        seeds = range(self.seeds)
        return [Trial(self.output, budget, "test", variant, best, seed) for seed in seeds]

    def trials(self) -> Iterator[Trial]:
        """All trainings known so far, in the order in which they are run."""
        for budget in self.budgets:
            for variant in self.variants:
                yield from self.tuning(budget, variant).trials
                yield from self.final(budget, variant)

    @property
    def least(self) -> int:
        """Number of trainings if no grid is extended."""
        each = len(self.rates) * self.tuning_seeds + self.seeds
        return len(self.budgets) * len(self.variants) * each

    def results(self) -> list[dict[str, Any]]:
        """Plain data: an entry per budget, with the rates and the results of each variant."""
        return [
            {
                "steps": budget.steps,
                "images": budget.images,
                "variants": {name: self._results(budget, name) for name in self.variants},
            }
            for budget in self.budgets
        ]

    def _results(self, budget: Budget, variant: str) -> dict[str, Any]:
        tuning = self.tuning(budget, variant)
        finals = {t.seed: t.result for t in self.final(budget, variant)}
        return {
            "rate": tuning.best,
            "at_the_edge": tuning.best is not None and tuning.at_the_edge,
            "tuning": {f"{rate:g}": score for rate, score in tuning.scores.items()},
            "seeds": {str(seed): result for seed, result in finals.items() if result is not None},
        }


def _rate(value: float) -> float:
    """Rounded, as it is part of a folder's name."""
    return float(f"{value:.4g}")
