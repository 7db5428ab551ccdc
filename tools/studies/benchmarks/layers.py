"""What each dynamic layer costs beside nn.Conv2d of the same shape."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from condseg import layers
from condseg.inference.device import pick_device
from condseg.models.mask.head import DynamicMaskHead
from condseg.structures import MaskQueries
from studies.benchmarks.measure import (
    Run,
    Spread,
    interleaved,
    machine,
    multiply_adds,
    parameters,
    peak_bytes,
    ratios,
)
from studies.benchmarks.report import markdown_table, ratio_plot, write_between, write_json
from studies.panels import save

BASE, MASK_BASE = "nn.Conv2d", "static mask head"
PASSES = ("forward", "forward + backward")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A layer and what it is called with.

    Attributes:
        name: in the table.
        module: the layer.
        inputs: its arguments; those of floating point get gradients.
        base: the static one that it is compared with.
        call: runs it.
    """

    name: str
    module: nn.Module
    inputs: tuple[Tensor, ...]
    base: str
    call: Callable[..., Tensor]

    def forward(self) -> None:
        """As in use: evaluation mode, no gradients."""
        self.module.eval()
        with torch.inference_mode():
            self.call(*self.inputs)

    def forward_backward(self) -> None:
        """As in training: gradients of parameters and inputs, given back before it ends."""
        self.module.train()
        leaves = [x.detach().requires_grad_() for x in self.inputs]
        wanted = [*leaves, *self.module.parameters()]
        torch.autograd.grad(self.call(*leaves).sum(), wanted, allow_unused=True)


def candidates(
    channels: int, size: int, batch: int, kernel_size: int, instances: int, device: torch.device
) -> list[Candidate]:
    """nn.Conv2d, the layers, a mask head of fixed weights, and the dynamic mask head.

    Args:
        channels: in and out of every layer; guides have as many.
        size: height and width of the maps.
        batch: pictures.
        kernel_size: of the layers that stand for nn.Conv2d.
        instances: masks of the mask heads, shared evenly among the pictures.
        device: where they are.
    """
    torch.manual_seed(0)
    x, guide = (torch.randn(batch, channels, size, size, device=device) for _ in range(2))
    window = {"kernel_size": kernel_size, "padding": kernel_size // 2}
    slots: dict[str, Callable[..., nn.Module]] = {
        BASE: nn.Conv2d,
        "CondConv2d": layers.CondConv2d,
        "DyConv2d": layers.DyConv2d,
        "DyNetConv2d": layers.DyNetConv2d,
        "ODConv2d 1x": partial(layers.ODConv2d, num_experts=1),
        "ODConv2d 4x": partial(layers.ODConv2d, num_experts=4),
        "DynamicConv2d": layers.DynamicConv2d,
    }
    guided: dict[str, Callable[..., nn.Module]] = {
        "DynamicLocalFilter2d": layers.DynamicLocalFilter2d,
        "DynamicMultiScaleFilter2d": layers.DynamicMultiScaleFilter2d,
        "DynamicDilatedPyramid2d": layers.DynamicDilatedPyramid2d,
    }
    made = []
    for name, kind in slots.items():
        module = kind(channels, channels, **window).to(device)
        made.append(Candidate(name, module, (x,), BASE, module))
    for name, kind in guided.items():
        module = kind(channels, channels, channels).to(device)
        made.append(Candidate(name, module, (x, guide), BASE, module))
    return made + _mask_heads(size, batch, instances, device)


def _mask_heads(size: int, batch: int, instances: int, device: torch.device) -> list[Candidate]:
    head = DynamicMaskHead(feature_stride=8, out_stride=8)
    features = torch.randn(batch, head.in_channels, size, size, device=device)
    params = 0.1 * torch.randn(instances, head.num_params, device=device)
    points = torch.rand(instances, 2, device=device) * 8 * size
    image_index = torch.arange(instances, device=device) % batch
    interest = torch.full((instances,), 64.0, device=device)

    def dynamic(features: Tensor, params: Tensor) -> Tensor:
        masks: Tensor = head(
            features, MaskQueries(params, points, interest, image_index, -1 - image_index)
        )
        return masks

    parts: list[nn.Module] = []
    for out, inputs in head.layers:
        parts += [nn.Conv2d(inputs, out, 1), nn.ReLU()]
    static = nn.Sequential(*parts[:-1]).to(device)
    first = head.layers[0][1]
    coordinates = torch.rand(instances, first - head.in_channels, size, size, device=device)

    def fixed(features: Tensor) -> Tensor:
        masks: Tensor = static(torch.cat((coordinates, features[image_index]), 1))
        return masks

    return [
        Candidate(MASK_BASE, static, (features,), MASK_BASE, fixed),
        Candidate("DynamicMaskHead", head, (features, params), MASK_BASE, dynamic),
    ]


def measure(
    channels: int,
    size: int,
    batch: int,
    kernel_size: int,
    instances: int,
    device: torch.device,
    rounds: int,
) -> dict[str, Any]:
    """All numbers, plain.

    Args:
        channels, size, batch, kernel_size, instances, device: see :func:`candidates`.
        rounds: samples of each time.

    Raises:
        ValueError: a number is below 1, or the kernel is even.
    """
    shape = {
        "channels": channels,
        "size": size,
        "batch": batch,
        "kernel_size": kernel_size,
        "instances": instances,
    }
    for name, value in {**shape, "rounds": rounds}.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; 1 or more is allowed")
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size is {kernel_size}; it must be odd to keep the map's size")
    facts = machine(device)
    made = candidates(channels, size, batch, kernel_size, instances, device)
    runs: dict[str, dict[str, Run]] = {
        PASSES[0]: {c.name: c.forward for c in made},
        PASSES[1]: {c.name: c.forward_backward for c in made},
    }
    seconds = {p: interleaved(each, device, rounds) for p, each in runs.items()}
    entries = {}
    for c in made:
        entries[c.name] = {
            "base": c.base,
            "parameters": parameters(c.module),
            "multiply_adds": multiply_adds(c.forward),
            "seconds": {p: Spread.of(seconds[p][c.name]).to_json() for p in PASSES},
            "time_ratio": {p: ratios(seconds[p], c.name, c.base).to_json() for p in PASSES},
            "peak_bytes": {p: peak_bytes(runs[p][c.name], device) for p in PASSES},
        }
    return {"machine": facts, "shape": {**shape, "rounds": rounds}, "layers": entries}


def table(results: dict[str, Any]) -> str:
    """The Markdown table; its head says on what machine."""
    facts, shape, entries = (results[k] for k in ("machine", "shape", "layers"))
    head = ["layer", "parameters", "MAdds", *(f"time, {p}" for p in PASSES)]
    head += [f"peak memory, {p}" for p in PASSES]
    lines = []
    for name, e in entries.items():
        base = entries[e["base"]]
        if name == e["base"]:
            cells = [f"{e['parameters']:,}", f"{e['multiply_adds'] / 1e6:,.1f} M"]
            cells += [f"{1e3 * e['seconds'][p]['median']:.2f} ms" for p in PASSES]
            cells += [f"{e['peak_bytes'][p] / 2**20:.2f} MiB" for p in PASSES]
        else:
            cells = [_times(e["parameters"], base["parameters"])]
            cells.append(_times(e["multiply_adds"], base["multiply_adds"]))
            for p in PASSES:
                r = e["time_ratio"][p]
                cells.append(f"{r['median']:.2f}x ({r['q1']:.2f} to {r['q3']:.2f})")
            cells += [_times(e["peak_bytes"][p], base["peak_bytes"][p]) for p in PASSES]
        lines.append([f"`{name}`", *cells])
    return "\n\n".join((machine_line(facts, shape), markdown_table(head, lines)))


def machine_line(facts: dict[str, Any], shape: dict[str, int]) -> str:
    busy = ", a busy machine" if facts["load_average_1min"] > facts["cores"] / 2 else ""
    gpu = f"{facts['gpu']}, CUDA {facts['cuda']}; " if "gpu" in facts else ""
    return (
        f"{gpu}{facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads; "
        f"load average at the start {facts['load_average_1min']:g}{busy}; "
        f"torch {facts['torch']}, Python {facts['python']}, condseg {facts['condseg']}. "
        f"{shape['batch']} pictures of {shape['size']} x {shape['size']}, {shape['channels']} "
        f"channels, kernel {shape['kernel_size']} x {shape['kernel_size']}; mask heads: "
        f"{shape['instances']} instances. Medians of {shape['rounds']} rounds, quartiles in "
        "brackets."
    )


def _times(mine: int, theirs: int) -> str:
    return f"{mine / theirs:.2f}x" if mine else "none"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--channels", type=int, default=64, help="in and out")
    parser.add_argument("--size", type=int, default=64, help="height and width of the maps")
    parser.add_argument("--batch", type=int, default=4, help="pictures")
    parser.add_argument("--kernel_size", type=int, default=3, help="odd")
    parser.add_argument("--instances", type=int, default=64, help="of the mask heads")
    parser.add_argument("--rounds", type=int, default=30, help="samples of each time")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--output", default="out/benchmark", help="folder of JSON and plot")
    parser.add_argument("--page", help="a Markdown page whose table is made anew")


def run(args: argparse.Namespace) -> None:
    """Measure, print, and write JSON, plot and (where a page is given) table."""
    device = pick_device(args.device)
    sizes = (args.channels, args.size, args.batch, args.kernel_size, args.instances)
    results = measure(*sizes, device, args.rounds)
    text = table(results)
    print(text)
    folder = Path(args.output)
    stem = f"layers_{device.type}"
    files = [write_json(results, folder / f"{stem}.json")]
    files.append(save(plot(results), folder / f"{stem}.png"))
    if args.page is not None:
        page = Path(args.page)
        write_between(page, f"benchmark layers {device.type}", text)
        files.append(page)
    print(f"\nwritten: {', '.join(map(str, files))}")


def plot(results: dict[str, Any]) -> Any:
    """Times relative to the static twin."""
    entries = results["layers"]
    shown = [name for name, e in entries.items() if name != e["base"]]
    series = {
        p: {
            n: Spread(*(entries[n]["time_ratio"][p][k] for k in ("median", "q1", "q3")))
            for n in shown
        }
        for p in PASSES
    }
    facts = results["machine"]
    where = facts.get("gpu", f"{facts['cpu']}, {facts['threads']} threads")
    notes = (f"{where}; load {facts['load_average_1min']:g}; torch {facts['torch']}",)
    return ratio_plot("Time relative to nn.Conv2d (mask head: to fixed weights)", notes, series)
