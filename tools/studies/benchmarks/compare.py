"""Several ways to the same result, side by side, and the bars that their ratios must reach."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from condseg.structures import Detections
from studies.benchmarks.measure import (
    Run,
    Spread,
    interleaved,
    peak_memory,
    ratios,
    rounds_within,
)
from studies.benchmarks.report import markdown_table

FAST, REFERENCE = "fast", "reference"
LEAST_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table: two ways, and what is asked of the first.

    Attributes:
        what: the line's name.
        mine, base: the two sides of the comparison.
        faster: at least so many times as fast as the base; the line's ratio is the speed's.
        slower: instead, at most so many times as slow; the line's ratio is the time's.
        memory: at most this part of the base's peak.
        same: both give the same result, so by how much they differ is told.
    """

    what: str
    mine: str = FAST
    base: str = REFERENCE
    faster: float | None = None
    slower: float | None = None
    memory: float | None = None
    same: bool = True


@dataclass(frozen=True, slots=True)
class Comparison:
    """Ways to one result that are measured in turns.

    Attributes:
        name: in the JSON.
        build: makes what runs, by name of the side; called when its turn comes, so that only one
            comparison's networks are held at a time.
        lines: what the table says of it.
        memory: whether peaks are measured.
    """

    name: str
    build: Callable[[], dict[str, Run]]
    lines: tuple[Line, ...] = ()
    memory: bool = True

    def measure(self, device: torch.device, seconds: float, most: int) -> dict[str, Any]:
        """All numbers, plain.

        Args:
            device: where it runs.
            seconds: for the samples of all sides together; at least five of each are taken.
            most: samples of each.
        """
        runs = self.build()
        results = {name: run() for name, run in runs.items()}
        rounds = rounds_within(runs, device, seconds, min(LEAST_ROUNDS, most), most)
        taken = interleaved(runs, device, rounds, warm_up=0)
        differences = {
            line.what: difference(results[line.mine], results[line.base])
            for line in self.lines
            if line.same
        }
        del results
        gc.collect()
        peaks = {n: peak_memory(run, device) for n, run in runs.items()} if self.memory else {}
        sides = {
            name: {
                "seconds": Spread.of(values).to_json(),
                "samples": values,
                "memory": peaks.get(name),
            }
            for name, values in taken.items()
        }
        lines = [
            judge(line, taken, {n: p["peak"] for n, p in peaks.items()}, differences)
            for line in self.lines
        ]
        return {"name": self.name, "rounds": rounds, "sides": sides, "lines": lines}


def judge(
    line: Line,
    seconds: Mapping[str, Sequence[float]],
    peaks: Mapping[str, int],
    differences: Mapping[str, float],
) -> dict[str, Any]:
    """The ratios of a line, its bars, and whether the medians reach them."""
    pair = (line.mine, line.base) if line.slower is not None else (line.base, line.mine)
    time = ratios(seconds, *pair)
    memory = peaks[line.mine] / max(peaks[line.base], 1) if peaks else None
    met = []
    if line.faster is not None:
        met.append(time.median >= line.faster)
    if line.slower is not None:
        met.append(time.median <= line.slower)
    if line.memory is not None:
        assert memory is not None, f"{line.what}: a bar for memory, which was not measured"
        met.append(memory <= line.memory)
    return {
        "what": line.what,
        "mine": line.mine,
        "base": line.base,
        "time": time.to_json(),
        "faster": line.faster,
        "slower": line.slower,
        "memory": memory,
        "memory_bar": line.memory,
        "reached": all(met) if met else None,
        "difference": differences.get(line.what),
    }


def difference(mine: object, base: object) -> float:
    """The largest difference of two results, over the tensors in them.

    Of numbers the relative L2 distance, of masks the part of the pixels that differ; infinite
    where the shapes do, or where a number is not finite. Detections may have another order:
    rounding decides it where scores are alike.
    """
    pairs = list(zip(_tensors(_paired(mine, base)), _tensors(base), strict=True))
    worst = 0.0
    for a, b in pairs:
        if a.shape != b.shape:
            return float("inf")
        if a.numel() == 0:
            continue
        if b.is_floating_point():
            far = (a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-12)
        else:
            far = (a != b).double().mean()
        if not far.isfinite():
            return float("inf")
        worst = max(worst, float(far))
    return worst


def _paired(mine: object, base: object) -> object:
    """Detections in the order of the nearest ones of the same class, if that is one to one."""
    if isinstance(mine, list) and isinstance(base, list):
        return [_paired(*pair) for pair in zip(mine, base, strict=True)]
    if not isinstance(mine, Detections) or not isinstance(base, Detections):
        return mine
    if len(mine) != len(base) or not len(mine):
        return mine
    far = (base.boxes[:, None] - mine.boxes).abs().sum(2)
    far[base.labels[:, None] != mine.labels] = float("inf")
    order = far.argmin(1)
    if len(order.unique()) != len(mine):
        return mine
    return Detections(*(getattr(mine, field.name)[order] for field in fields(mine)))


def _tensors(result: object) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result.detach()
    elif isinstance(result, Mapping):
        for value in result.values():
            yield from _tensors(value)
    elif isinstance(result, Sequence) and not isinstance(result, str):
        for value in result:
            yield from _tensors(value)
    elif is_dataclass(result):
        for field in fields(result):
            yield from _tensors(getattr(result, field.name))


def bars_table(lines: Sequence[Mapping[str, Any]]) -> str:
    """What was asked and what was reached; see :class:`Line` for what the ratios are."""
    rows = []
    for line in lines:
        time, memory = line["time"], line["memory"]
        bar = f"{line['faster']:g}x" if line["faster"] is not None else "none"
        if line["slower"] is not None:
            bar = f"at most {line['slower']:g}x"
        rows.append(
            [
                line["what"],
                f"{time['median']:.2f}x ({time['q1']:.2f} to {time['q3']:.2f})",
                bar,
                "not measured" if memory is None else f"{memory:.2f}x",
                "none" if line["memory_bar"] is None else f"{line['memory_bar']:g}x",
                {True: "yes", False: "no", None: "no bar"}[line["reached"]],
            ]
        )
    head = ["what", "time ratio (median, quartiles)", "bar", "memory ratio", "bar", "reached"]
    return markdown_table(head, rows)


def sides_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Times and peaks of every side, and by how much the results differ."""
    rows = []
    for result in results:
        differences = {
            line["mine"]: f"{line['difference']:.1e}"
            for line in result["lines"]
            if line["difference"] is not None
        }
        for name, side in result["sides"].items():
            spread, memory = side["seconds"], side["memory"] or {}
            rows.append(
                [
                    f"{result['name']}: {name}",
                    f"{_ms(spread['median'])} ({_ms(spread['q1'])} to {_ms(spread['q3'])})",
                    str(result["rounds"]),
                    *(_mib(memory.get(kind)) for kind in ("counted", "resident")),
                    differences.get(name, ""),
                ]
            )
    head = ["side", "ms (quartiles)", "samples", "MiB, counted", "MiB, resident", "difference"]
    return markdown_table(head, rows)


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.2f}" if seconds < 0.1 else f"{1e3 * seconds:,.0f}"


def _mib(count: int | None) -> str:
    return "" if count is None else f"{count / 2**20:,.1f}"
