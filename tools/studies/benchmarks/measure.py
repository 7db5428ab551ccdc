"""How it is measured: time in turns, memory and operations by counting, and on what machine."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import condseg

Run = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if len(values) < 2:
            return cls(values[0], values[0], values[0])
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(middle, low, high)

    def to_json(self) -> dict[str, float]:
        return {"median": self.median, "q1": self.low, "q3": self.high}


def interleaved(
    runs: Mapping[str, Run], device: torch.device, rounds: int, warm_up: int = 2
) -> dict[str, list[float]]:
    """Seconds of each run, in turns, so that what disturbs the machine disturbs all alike.

    Args:
        runs: name -> what is timed.
        device: waited for before and after each.
        rounds: samples of each; every round starts one further, so that none always follows the
            same neighbour.
        warm_up: rounds before, which are not counted.

    Raises:
        ValueError: ``rounds`` < 1.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; 1 or more is allowed")
    names = list(runs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for k in range(-warm_up, rounds):
        first = k % len(names)
        for name in names[first:] + names[:first]:
            _wait(device)
            start = time.perf_counter()
            runs[name]()
            _wait(device)
            if k >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios(seconds: Mapping[str, Sequence[float]], name: str, base: str) -> Spread:
    """How many times as long as ``base`` it took, round by round."""
    pairs = zip(seconds[name], seconds[base], strict=True)
    return Spread.of([mine / theirs for mine, theirs in pairs])


def rounds_within(
    runs: Mapping[str, Run], device: torch.device, seconds: float, least: int, most: int
) -> int:
    """How many rounds take about so long, judged by one that is not counted.

    Args:
        runs, device: see :func:`interleaved`.
        seconds: for all rounds together.
        least, most: the number is between them.
    """
    once = interleaved(runs, device, 1, warm_up=0)
    return max(least, min(most, int(seconds / max(sum(map(sum, once.values())), 1e-9))))


def peak_memory(run: Run, device: torch.device) -> dict[str, int]:
    """Most bytes that the run held at one time beyond what was held before it, in both ways.

    Returns:
        ``counted``, see :func:`peak_bytes`; ``resident``, see :func:`peak_resident`, on the CPU
        where the system tells; ``peak``, the larger of them, for each sees what the other misses.
    """
    run()  # what is built once and kept is not the run's
    found = {"counted": peak_bytes(run, device, warm=True)}
    if device.type == "cpu" and (resident := peak_resident(run)) is not None:
        found["resident"] = resident
    return {**found, "peak": max(found.values())}


def peak_resident(run: Run) -> int | None:
    """By how much the process's memory grew in the run, as Linux counts it; None elsewhere.

    It has what libraries take from the system by themselves, and what is taken but never touched
    is not in it. Memory that was free and not yet given back is given back before. How much is
    free between pieces that are held differs from run to run, so the median of three runs is taken.
    """
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not os.access(reset, os.W_OK):
        return None

    def kibibytes(name: str) -> int:
        lines = dict(line.split(":", 1) for line in status.read_text("ascii").splitlines())
        return int(lines[name].split()[0])

    library = ctypes.CDLL(None)
    grown = []
    for _ in range(3):
        gc.collect()
        if hasattr(library, "malloc_trim"):
            library.malloc_trim(0)
        reset.write_text("5", "ascii")  # the high-water mark falls to what is held now
        before = kibibytes("VmRSS")
        run()
        grown.append(max(0, kibibytes("VmHWM") - before))
    return 1024 * int(statistics.median(grown))


def peak_bytes(run: Run, device: torch.device, warm: bool = False) -> int:
    """Most bytes that the run held at one time beyond what was held before it; counted, exact.

    On CUDA the caching allocator's own count; on the CPU every allocation and release of
    PyTorch's allocator, as the profiler records them (buffers that a library takes from the
    system by itself are not among them).

    Args:
        run: what is measured.
        device: where it runs.
        warm: it ran before; otherwise it runs once more, for what is built once and kept is not
            the run's.
    """
    if not warm:
        run()
    if device.type == "cuda":
        _wait(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        _wait(device)
        return torch.cuda.max_memory_allocated(device) - before
    cpu = [ProfilerActivity.CPU]
    with profile(activities=cpu, profile_memory=True, acc_events=True) as recorded:
        run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    changes = [e for e in events if e.get("name") == "[memory]" and e["args"]["Device Type"] == 0]
    held = peak = 0
    for event in sorted(changes, key=lambda e: e["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


def multiply_adds(run: Run) -> int:
    """Multiply-adds of the convolutions, matrix products and per-pixel filters of a run.

    Counted by PyTorch's own counter from the shapes as they pass (two FLOPs are one), to which
    ``addcmul``, by which filters at each pixel are summed, is made known. Other element-wise work
    is not counted.
    """

    def addcmul(*shapes: Any, out_shape: Any = None, **_: Any) -> int:
        return 2 * int(torch.Size(out_shape).numel())

    aten = torch.ops.aten
    mapping = {aten.addcmul: addcmul, aten.addcmul_: addcmul}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        run()
    return int(counter.get_total_flops()) // 2


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def machine(device: torch.device) -> dict[str, Any]:
    """Hardware and versions, and how busy the machine was when it was asked."""
    facts: dict[str, Any] = {
        "device": device.type,
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "load_average_1min": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "condseg": condseg.__version__,
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["cuda"] = torch.version.cuda
        facts["cudnn"] = torch.backends.cudnn.version()
        facts["tf32"] = torch.backends.cudnn.allow_tf32
    return facts


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
