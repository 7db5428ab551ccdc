"""What came out: means and spreads over the seeds, and whether the papers' claims show."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from studies.benchmarks.report import markdown_table
from studies.comparison.variants import CLAIMS, VARIANTS

MOST_LUCK = 0.1
"""Three seeds each are the fewest that tell anything."""

Results = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""variant -> seed -> a trial's result, finished trials alone."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of one figure over the seeds; the deviation is the sample's, nan for a single seed."""

    mean: float
    deviation: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Statistics:
        deviation = statistics.stdev(values) if len(values) > 1 else math.nan
        return cls(statistics.fmean(values), deviation, min(values), max(values))

    def __str__(self) -> str:
        spread = "" if math.isnan(self.deviation) else f" ± {self.deviation:.3f}"
        return f"{self.mean:.3f}{spread}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a claim shows in the seeds.

    Attributes:
        claim: what is claimed.
        difference: of the means.
        verdict: "shows" where each seed of the one is above each of the other, "contradicted"
            where each is below, else "does not show"; "too few seeds" where the luck is too great.
        luck: chance that the seeds lie apart so, were the two in truth the same: 2 / C(n + m, n).
    """

    claim: str
    difference: float
    verdict: str
    luck: float


def statistics_of(results: Results, variant: str, metric: str) -> Statistics:
    return Statistics.of([r["metrics"][metric] for r in results[variant].values()])


def verdicts(results: Results, metric: str = "mask/AP") -> list[Verdict]:
    """The claims about variants that have results, judged without assuming any distribution."""
    judged = []
    for better, worse, claim in CLAIMS:
        if not (results.get(better) and results.get(worse)):
            continue
        mine, theirs = (statistics_of(results, name, metric) for name in (better, worse))
        n, m = len(results[better]), len(results[worse])
        luck = min(1.0, 2 / math.comb(n + m, n))
        verdict = "does not show"
        if luck > MOST_LUCK:
            verdict = "too few seeds"
        elif mine.low > theirs.high:
            verdict = "shows"
        elif mine.high < theirs.low:
            verdict = "contradicted"
        judged.append(Verdict(claim, mine.mean - theirs.mean, verdict, luck))
    return judged


def as_dict(
    results: Results, costs: Mapping[str, Any] | None, budget: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything as plain data, each seed's figures too."""
    variants = {}
    for name, seeds in results.items():
        entry: dict[str, Any] = {
            "label": VARIANTS[name].label,
            "dynamic": VARIANTS[name].part,
            "overrides": dict(VARIANTS[name].overrides),
            "seeds": {str(seed): result for seed, result in seeds.items()},
        }
        if seeds:
            for metric in ("mask/AP", "box/AP"):
                values = asdict(statistics_of(results, name, metric))
                # JSON has no nan.
                entry[metric] = {k: None if math.isnan(v) else v for k, v in values.items()}
        if costs and name in costs["variants"]:
            entry["costs"] = costs["variants"][name]
        variants[name] = entry
    setting = {k: v for k, v in (costs or {}).items() if k != "variants"}
    return {
        "budget": dict(budget),
        "variants": variants,
        "claims": [asdict(v) for v in verdicts(results)],
        "costs": setting or None,
    }


def page(results: Results, costs: Mapping[str, Any] | None, budget: Mapping[str, Any]) -> str:
    """The table, what it stands on, and the claims, in Markdown."""
    parts = [f"{_trained(results, budget)}\n{_measured(costs)}", _table(results, costs)]
    if judged := verdicts(results):
        lines = [[v.claim, f"{v.difference:+.3f}", v.verdict, f"{v.luck:.0%}"] for v in judged]
        head = ["claim", "difference in mask AP", "here", "by luck"]
        parts += [
            "A claim shows where every seed of the one is above every seed of the other, is "
            "contradicted where every seed is below, and else does not show: the difference is "
            "within the spread of the seeds. By luck: the chance that seeds of two variants that "
            "are in truth the same lie apart so; with one in ten, expect about one wrong verdict "
            "in ten.",
            markdown_table(head, lines),
        ]
    return "\n\n".join(parts) + "\n"


def _table(results: Results, costs: Mapping[str, Any] | None) -> str:
    head = ["variant", "dynamic", "seeds", "mask AP", "box AP", "parameters", "GFLOPs"]
    head += ["latency", "peak memory", "CPU min a training"]
    lines = []
    for name, seeds in results.items():
        variant = VARIANTS[name]
        aps = [
            str(statistics_of(results, name, f"{kind}/AP")) if seeds else "-"
            for kind in ("mask", "box")
        ]
        cost = (costs or {"variants": {}})["variants"].get(name)
        cells = ["-"] * 4
        if cost:
            latency = cost["latency_seconds"]
            low, middle, high = (1e3 * latency[k] for k in ("q1", "median", "q3"))
            cells = [
                f"{cost['parameters'] / 1e6:.2f} M",
                f"{2 * cost['multiply_adds'] / 1e9:.2f}",
                f"{middle:.1f} ms ({low:.1f} to {high:.1f})",
                f"{cost['peak_bytes'] / 2**20:.1f} MiB",
            ]
        whole = [s["cpu_seconds"] for s in seeds.values() if s["cpu_seconds"] is not None]
        minutes = f"{statistics.fmean(whole) / 60:.1f}" if whole else "-"
        lines.append([variant.label, variant.part, str(len(seeds)), *aps, *cells, minutes])
    return markdown_table(head, lines)


def _trained(results: Results, budget: Mapping[str, Any]) -> str:
    also = f", {' '.join(budget['words'])}" if budget["words"] else ""
    counts = sorted({len(seeds) for seeds in results.values()})
    seeds = " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))
    return (
        f"Trained: {budget['steps']} steps of {' + '.join(budget['configs'])}{also}; {seeds} seeds "
        "a variant, mean ± standard deviation over them. Evaluated once, after the last step. "
        "Dynamic backbones: the convolutions of strides 8 to 32 but for stem and shortcuts. "
        + " ".join(hardware(results))
    )


def hardware(results: Results) -> list[str]:
    """On what the trials ran, a sentence for each kind of machine."""
    machines = [r["machine"] for seeds in results.values() for r in seeds.values()]
    return list(dict.fromkeys(f"{_machine(facts)}." for facts in machines))


def _measured(costs: Mapping[str, Any] | None) -> str:
    if not costs:
        return "Costs: not measured yet."
    height, width = costs["picture"]
    return (
        f"Costs: a forward pass in float32 on one picture of {height} x {width}, without the mask "
        "head and the post-process; two FLOPs to a multiply-add; latency in turns, median and "
        f"quartiles of {costs['rounds']} rounds; peak memory is what forward, losses and backward "
        f"on {costs['batch']} pictures hold beyond the weights, in float32. "
        f"{_machine(costs['machine'])}; load average at the start "
        f"{costs['machine']['load_average_1min']:g}."
    )


def _machine(facts: Mapping[str, Any]) -> str:
    gpu = f"{facts['gpu']}, CUDA {facts['cuda']}; " if "gpu" in facts else ""
    return (
        f"{gpu}{facts['cpu']}, {facts['cores']} cores, threads: {facts['threads']}; "
        f"torch {facts['torch']}, Python {facts['python']}, condseg {facts['condseg']}"
    )
