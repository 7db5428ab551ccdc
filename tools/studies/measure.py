"""Time measured in turns, memory and operations counted, and on which machine."""

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
    q1: float
    q3: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if len(values) < 2:
            return cls(values[0], values[0], values[0])
        q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, q1, q3)


def interleaved(
    runs: Mapping[str, Run], device: torch.device, rounds: int, warm_up: int = 2
) -> dict[str, list[float]]:
    """Seconds of each run, measured in turns, so that a disturbance affects all of them alike.

    Args:
        device: synchronised before and after each run.
        rounds: samples of each. Each round starts with the next run, so that none always follows
            the same one.
        warm_up: rounds that are run first and not counted.
    """
    names = list(runs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for k in range(-warm_up, rounds):
        first = k % len(names)
        for name in names[first:] + names[:first]:
            _synchronize(device)
            start = time.perf_counter()
            runs[name]()
            _synchronize(device)
            if k >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios(seconds: Mapping[str, Sequence[float]], name: str, base: str) -> Spread:
    """Time of ``name`` over that of ``base``, round by round."""
    pairs = zip(seconds[name], seconds[base], strict=True)
    return Spread.of([own / other for own, other in pairs])


def peak_memory(run: Run, device: torch.device) -> dict[str, int]:
    """Peak bytes of a run above what was held before it, counted in two ways.

    ``counted``, see :func:`peak_bytes`; ``resident``, see :func:`peak_resident`, on a CPU under
    Linux; ``peak``, the larger of them: each misses allocations that the other includes.
    """
    peaks = {"counted": peak_bytes(run, device)}
    if device.type == "cpu" and (resident := peak_resident(run)) is not None:
        peaks["resident"] = resident
    return {**peaks, "peak": max(peaks.values())}


def peak_resident(run: Run) -> int | None:
    """Growth of the process's resident memory in a run, in bytes; None where it is not known.

    It includes what libraries allocate by themselves, and excludes what is never written to. Free
    memory is returned to the system before. How much is free between allocated pieces varies, so
    the median of three runs is taken.
    """
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not os.access(reset, os.W_OK):
        return None

    def kibibytes(name: str) -> int:
        lines = dict(line.split(":", 1) for line in status.read_text("ascii").splitlines())
        return int(lines[name].split()[0])

    library = ctypes.CDLL(None)
    grown = []
    gc.collect()
    for _ in range(3):
        if hasattr(library, "malloc_trim"):
            library.malloc_trim(0)
        reset.write_text("5", "ascii")  # sets the peak to the present value
        before = kibibytes("VmRSS")
        run()
        grown.append(max(0, kibibytes("VmHWM") - before))
    return 1024 * int(statistics.median(grown))


def peak_bytes(run: Run, device: torch.device) -> int:
    """Peak bytes of a run above what was held before it, as PyTorch allocates them; exact.

    On CUDA the count of the caching allocator; on the CPU every allocation and release, as the
    profiler records them. The run is called once before, so that what is kept is not counted.
    """
    run()
    if device.type == "cuda":
        _synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        _synchronize(device)
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
    """Multiply-adds of a run's convolutions, matrix products and per-pixel filters.

    Counted by PyTorch's FLOP counter (two FLOPs are one), to which ``addcmul``, which sums
    per-pixel filters, is added. Other element-wise work is not counted.
    """

    def addcmul(*shapes: Any, out_shape: Any = None, **_: Any) -> int:
        return 2 * int(torch.Size(out_shape).numel())

    aten = torch.ops.aten
    mapping = {aten.addcmul: addcmul, aten.addcmul_: addcmul}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        run()
    return int(counter.get_total_flops()) // 2


def parameters(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in module.parameters())


def machine(device: torch.device) -> dict[str, Any]:
    """Hardware, versions, and the machine's load."""
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


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
