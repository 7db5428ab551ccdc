"""Means and spreads over the seeds, and whether they support the papers' claims."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from studies.comparison.variants import CLAIMS, VARIANTS
from studies.report import machine_text, markdown_table, spread_text

MAX_CHANCE = 0.1
"""Of a wrong verdict; it takes three seeds each to reach it."""

Results = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""Variant -> seed -> result of the trial; finished trials only."""


def values_of(results: Results, variant: str, metric: str = "mask/AP") -> list[float]:
    """A metric of each seed of a variant."""
    return [result["metrics"][metric] for result in results[variant].values()]


def mean_and_deviation(values: Sequence[float]) -> str:
    """As text; the deviation is the sample's, and a single value has none."""
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def verdicts(results: Results) -> list[dict[str, Any]]:
    """Whether the seeds support the claims whose variants have results; plain data.

    ``difference`` is that of the mean mask APs. ``verdict`` is "supported" if each seed of the
    first variant is above each of the second, "contradicted" if each is below, else "open"; "too
    few seeds" if ``chance``, the probability that the seeds of two equal variants are separated
    (2 / C(n + m, n)), is too high. No distribution is assumed.
    """
    judged = []
    for better, worse, claim in CLAIMS:
        if not (results.get(better) and results.get(worse)):
            continue
        own, other = values_of(results, better), values_of(results, worse)
        chance = min(1.0, 2 / math.comb(len(own) + len(other), len(own)))
        verdict = "open"
        if chance > MAX_CHANCE:
            verdict = "too few seeds"
        elif min(own) > max(other):
            verdict = "supported"
        elif max(own) < min(other):
            verdict = "contradicted"
        difference = statistics.fmean(own) - statistics.fmean(other)
        judged.append(
            {"claim": claim, "difference": difference, "verdict": verdict, "chance": chance}
        )
    return judged


def as_dict(
    results: Results, costs: Mapping[str, Any] | None, budget: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything as plain data, with the figures of each seed."""
    variants = {}
    for name, seeds in results.items():
        entry: dict[str, Any] = {
            "label": VARIANTS[name].label,
            "dynamic": VARIANTS[name].part,
            "overrides": dict(VARIANTS[name].overrides),
            "seeds": {str(seed): result for seed, result in seeds.items()},
        }
        if costs and name in costs["variants"]:
            entry["costs"] = costs["variants"][name]
        variants[name] = entry
    setting = {k: v for k, v in (costs or {}).items() if k != "variants"}
    claims = verdicts(results)
    return {"budget": dict(budget), "variants": variants, "claims": claims, "costs": setting}


def page(results: Results, costs: Mapping[str, Any] | None, budget: Mapping[str, Any]) -> str:
    """The setting, the table and the claims in Markdown."""
    parts = [f"{_training(results, budget)}\n{_measurement(costs)}", _table(results, costs)]
    if judged := verdicts(results):
        rows = [
            [v["claim"], f"{v['difference']:+.3f}", v["verdict"], f"{v['chance']:.0%}"]
            for v in judged
        ]
        head = ["claim", "difference in mask AP", "verdict", "chance"]
        parts += [
            "A claim is supported if every seed of the first variant is above every seed of the "
            "second, contradicted if every seed is below, and otherwise open: the difference is "
            "within the spread of the seeds. Chance: the probability that the seeds of two equal "
            "variants are separated like this; at 10 %, expect one wrong verdict in ten.",
            markdown_table(head, rows),
        ]
    return "\n\n".join(parts) + "\n"


def _table(results: Results, costs: Mapping[str, Any] | None) -> str:
    head = ["variant", "dynamic", "seeds", "mask AP", "box AP", "parameters", "GFLOPs"]
    head += ["latency", "peak memory", "CPU min a training"]
    rows = []
    for name, seeds in results.items():
        aps = [
            mean_and_deviation(values_of(results, name, metric)) if seeds else "-"
            for metric in ("mask/AP", "box/AP")
        ]
        cells = ["-"] * 4
        if cost := (costs or {"variants": {}})["variants"].get(name):
            latency = {key: 1e3 * value for key, value in cost["latency_seconds"].items()}
            cells = [
                f"{cost['parameters'] / 1e6:.2f} M",
                f"{2 * cost['multiply_adds'] / 1e9:.2f}",
                spread_text(latency, "{:.1f}", " ms"),
                f"{cost['peak_bytes'] / 2**20:.1f} MiB",
            ]
        seconds = [s["cpu_seconds"] for s in seeds.values() if s["cpu_seconds"] is not None]
        minutes = f"{statistics.fmean(seconds) / 60:.1f}" if seconds else "-"
        variant = VARIANTS[name]
        rows.append([variant.label, variant.part, str(len(seeds)), *aps, *cells, minutes])
    return markdown_table(head, rows)


def _training(results: Results, budget: Mapping[str, Any]) -> str:
    also = f", {' '.join(budget['arguments'])}" if budget["arguments"] else ""
    counts = sorted({len(seeds) for seeds in results.values()})
    seeds = " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))
    return (
        f"Trained: {budget['steps']} steps of {' + '.join(budget['configs'])}{also}; {seeds} seeds "
        "a variant, mean ± standard deviation over them. Evaluated once, after the last step. "
        "Dynamic backbones: the convolutions of strides 8 to 32, without stem and shortcuts. "
        + " ".join(f"{text}." for text in hardware(results))
    )


def hardware(results: Results) -> list[str]:
    """The machines of the trials."""
    machines = [r["machine"] for seeds in results.values() for r in seeds.values()]
    return list(dict.fromkeys(machine_text(facts) for facts in machines))


def _measurement(costs: Mapping[str, Any] | None) -> str:
    if not costs:
        return "Costs: not measured yet."
    height, width = costs["image"]
    return (
        f"Costs: a forward pass in float32 on one image of {height} x {width}, without the mask "
        "head and the post-process; two FLOPs a multiply-add; latency in turns, median and "
        f"quartiles of {costs['rounds']} rounds; peak memory is what forward, losses and backward "
        f"on {costs['batch']} images hold beyond the weights, in float32. "
        f"{machine_text(costs['machine'])}."
    )
