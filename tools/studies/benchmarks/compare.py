"""Several forms of one computation, measured in turns, and the bars for their ratios."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from condseg.structures import Detections
from studies.measure import Run, Spread, interleaved, peak_memory, ratios

FAST, PUBLISHED = "fast", "published"
MIN_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the table: two sides of a comparison, and the bar for the first.

    Attributes:
        what: the line's name.
        own, base: the two sides.
        faster: at least so many times as fast as the base; the time ratio is base / own.
        slower: instead, at most so many times as slow; the time ratio is own / base.
        memory: at most this fraction of the base's peak.
        same: both compute the same result, so their difference is shown.
    """

    what: str
    own: str = FAST
    base: str = PUBLISHED
    faster: float | None = None
    slower: float | None = None
    memory: float | None = None
    same: bool = True

    def judge(self, seconds: Mapping[str, Sequence[float]], peaks: Mapping[str, int]) -> Any:
        """The ratios, the bars, and whether the medians reach them, as plain data."""
        pair = (self.base, self.own) if self.slower is None else (self.own, self.base)
        time = ratios(seconds, *pair)
        memory = peaks[self.own] / max(peaks[self.base], 1) if peaks else None
        met = []
        if self.faster is not None:
            met.append(time.median >= self.faster)
        if self.slower is not None:
            met.append(time.median <= self.slower)
        if self.memory is not None:
            assert memory is not None, f"{self.what}: memory has a bar and was not measured"
            met.append(memory <= self.memory)
        return {
            "what": self.what,
            "own": self.own,
            "base": self.base,
            "time": asdict(time),
            "faster": self.faster,
            "slower": self.slower,
            "memory": memory,
            "memory_bar": self.memory,
            "reached": all(met),
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """Sides that are measured in turns.

    Attributes:
        name: in the table and in the JSON.
        build: returns what is run, by name of the side. It is called late, so that only the
            networks of one comparison are in memory at a time.
        lines: of the table.
        memory: whether peaks are measured.
    """

    name: str
    build: Callable[[], dict[str, Run]]
    lines: tuple[Line, ...] = ()
    memory: bool = True

    def measure(self, device: torch.device, seconds: float, max_rounds: int) -> dict[str, Any]:
        """Times, peaks, differences and lines, as plain data.

        Args:
            device: where it runs.
            seconds: for the samples of all sides together; there are five of each or more.
            max_rounds: max samples of each.
        """
        runs = self.build()
        results = {name: run() for name, run in runs.items()}
        differences = [
            difference(results[line.own], results[line.base]) if line.same else None
            for line in self.lines
        ]
        del results
        gc.collect()
        rounds = max_rounds
        if max_rounds > MIN_ROUNDS:
            once = sum(map(sum, interleaved(runs, device, 1, warm_up=0).values()))
            rounds = min(max_rounds, max(MIN_ROUNDS, int(seconds / max(once, 1e-9))))
        samples = interleaved(runs, device, rounds, warm_up=0)
        memory = {n: peak_memory(run, device) for n, run in runs.items()} if self.memory else {}
        peaks = {name: each["peak"] for name, each in memory.items()}
        sides = {
            name: {"seconds": asdict(Spread.of(s)), "samples": s, "memory": memory.get(name)}
            for name, s in samples.items()
        }
        lines = [
            {**line.judge(samples, peaks), "difference": value}
            for line, value in zip(self.lines, differences, strict=True)
        ]
        return {"name": self.name, "rounds": rounds, "sides": sides, "lines": lines}


def difference(own: object, base: object) -> float:
    """The largest difference between the tensors in two results.

    The relative L2 distance of numbers, the fraction of differing pixels of masks; infinite where
    shapes differ or a number is not finite. Detections may be in another order: rounding decides
    it where scores are equal.
    """
    largest = 0.0
    for a, b in zip(_tensors(_matched(own, base)), _tensors(base), strict=True):
        if a.shape != b.shape:
            return float("inf")
        if a.numel() == 0:
            continue
        if b.is_floating_point():
            distance = (a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-12)
        else:
            distance = (a != b).double().mean()
        if not distance.isfinite():
            return float("inf")
        largest = max(largest, float(distance))
    return largest


def _matched(own: object, base: object) -> object:
    """Detections in the order of the nearest ones of the same class, if that is one to one."""
    if isinstance(own, list) and isinstance(base, list):
        return [_matched(*pair) for pair in zip(own, base, strict=True)]
    if not isinstance(own, Detections) or not isinstance(base, Detections):
        return own
    if len(own) != len(base) or not len(own):
        return own
    distance = (base.boxes[:, None] - own.boxes).abs().sum(2)  # (base, own)
    distance[base.labels[:, None] != own.labels] = float("inf")
    order = distance.argmin(1)
    if len(order.unique()) != len(own):
        return own
    return Detections(*(getattr(own, field.name)[order] for field in fields(own)))


def _tensors(result: Any) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result.detach()
    else:
        if isinstance(result, Detections):
            result = [getattr(result, field.name) for field in fields(result)]
        for value in result:
            yield from _tensors(value)
