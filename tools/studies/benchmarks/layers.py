"""What each dynamic layer costs beside nn.Conv2d of the same shape."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from condseg import layers
from condseg.inference.device import pick_device
from condseg.models.mask.head import DynamicMaskHead
from condseg.structures import MaskQueries
from studies.charts import new_figure, save
from studies.charts import ratios as draw_ratios
from studies.measure import (
    Run,
    Spread,
    interleaved,
    machine,
    multiply_adds,
    parameters,
    peak_bytes,
    ratios,
)
from studies.report import machine_text, markdown_table, write_between, write_json

BASE, MASK_BASE = "nn.Conv2d", "static mask head"
PASSES = ("forward", "forward + backward")


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Sizes of the layers and their inputs.

    Attributes:
        channels: in and out of every layer; guides have as many.
        size: height and width of the maps.
        batch: images.
        kernel_size: of the layers that replace nn.Conv2d.
        instances: masks of the mask heads, distributed evenly over the images.
    """

    channels: int = 64
    size: int = 64
    batch: int = 4
    kernel_size: int = 3
    instances: int = 64


@dataclass(frozen=True, slots=True)
class Candidate:
    """A layer and its inputs.

    Attributes:
        module: the layer.
        inputs: its arguments; training computes their gradients.
        base: name of the static layer it is compared with.
        call: runs it; default: the module itself.
    """

    module: nn.Module
    inputs: tuple[Tensor, ...]
    base: str = BASE
    call: Callable[..., Tensor] | None = None

    def forward(self) -> None:
        """Evaluation mode, no gradients."""
        self.module.eval()
        with torch.inference_mode():
            (self.call or self.module)(*self.inputs)

    def forward_backward(self) -> None:
        """Training mode, with gradients of parameters and inputs, which are released at the end."""
        self.module.train()
        leaves = [x.detach().requires_grad_() for x in self.inputs]
        outputs = (self.call or self.module)(*leaves)
        sources = [*leaves, *self.module.parameters()]
        torch.autograd.grad(outputs.sum(), sources, allow_unused=True)


def candidates(shape: LayerShape, device: torch.device) -> dict[str, Candidate]:
    """nn.Conv2d, the layers, a mask head of fixed weights, and the dynamic mask head."""
    torch.manual_seed(0)
    channels, size = shape.channels, shape.size
    x, guide = (torch.randn(shape.batch, channels, size, size, device=device) for _ in range(2))
    window = {"kernel_size": shape.kernel_size, "padding": shape.kernel_size // 2}
    slots: dict[str, Callable[..., nn.Module]] = {
        BASE: nn.Conv2d,
        "CondConv2d": layers.CondConv2d,
        "DyConv2d": layers.DyConv2d,
        "DyNetConv2d": layers.DyNetConv2d,
        "ODConv2d 1x": partial(layers.ODConv2d, num_experts=1),
        "ODConv2d 4x": partial(layers.ODConv2d, num_experts=4),
        "DynamicConv2d": layers.DynamicConv2d,
    }
    guided: tuple[Callable[..., nn.Module], ...] = (
        layers.DynamicLocalFilter2d,
        layers.DynamicMultiScaleFilter2d,
        layers.DynamicDilatedPyramid2d,
    )
    found = {n: Candidate(kind(channels, channels, **window), (x,)) for n, kind in slots.items()}
    for kind in guided:
        module = kind(channels, channels, channels)
        found[type(module).__name__] = Candidate(module, (x, guide))
    found |= _mask_heads(shape, device)
    for candidate in found.values():
        candidate.module.to(device)
    return found


def _mask_heads(shape: LayerShape, device: torch.device) -> dict[str, Candidate]:
    head, count, size = DynamicMaskHead(out_stride=8), shape.instances, shape.size
    features = torch.randn(shape.batch, head.in_channels, size, size, device=device)
    params = 0.1 * torch.randn(count, head.num_params, device=device)
    points = torch.rand(count, 2, device=device) * 8 * size
    image_index = torch.arange(count, device=device) % shape.batch
    interest = torch.full((count,), 64.0, device=device)

    def dynamic(features: Tensor, params: Tensor) -> Tensor:
        queries = MaskQueries(params, points, interest, image_index)
        masks: Tensor = head(features, queries)
        return masks

    parts: list[nn.Module] = []
    for outputs, inputs in head.layers:
        parts += [nn.Conv2d(inputs, outputs, 1), nn.ReLU()]
    static = nn.Sequential(*parts[:-1])
    coordinates = torch.rand(count, head.layers[0][1] - head.in_channels, size, size, device=device)

    def fixed(features: Tensor) -> Tensor:
        masks: Tensor = static(torch.cat((coordinates, features[image_index]), 1))
        return masks

    return {
        MASK_BASE: Candidate(static, (features,), MASK_BASE, fixed),
        "DynamicMaskHead": Candidate(head, (features, params), MASK_BASE, dynamic),
    }


def measure(shape: LayerShape, device: torch.device, rounds: int) -> dict[str, Any]:
    """Parameters, operations, times and peaks of all candidates, as plain data."""
    facts, found = machine(device), candidates(shape, device)
    runs: dict[str, dict[str, Run]] = {
        PASSES[0]: {name: c.forward for name, c in found.items()},
        PASSES[1]: {name: c.forward_backward for name, c in found.items()},
    }
    seconds = {p: interleaved(each, device, rounds) for p, each in runs.items()}
    entries = {
        name: {
            "base": c.base,
            "parameters": parameters(c.module),
            "multiply_adds": multiply_adds(c.forward),
            "seconds": {p: asdict(Spread.of(seconds[p][name])) for p in PASSES},
            "time_ratio": {p: asdict(ratios(seconds[p], name, c.base)) for p in PASSES},
            "peak_bytes": {p: peak_bytes(runs[p][name], device) for p in PASSES},
        }
        for name, c in found.items()
    }
    return {"machine": facts, "shape": {**asdict(shape), "rounds": rounds}, "layers": entries}


def table(results: dict[str, Any]) -> str:
    """The Markdown table, with a line about the machine and the shapes above it."""
    shape, entries = results["shape"], results["layers"]
    head = ["layer", "parameters", "MAdds", *(f"time, {p}" for p in PASSES)]
    head += [f"peak memory, {p}" for p in PASSES]
    rows = []
    for name, e in entries.items():
        base = entries[e["base"]]
        if name == e["base"]:
            cells = [f"{e['parameters']:,}", f"{e['multiply_adds'] / 1e6:,.1f} M"]
            cells += [f"{1e3 * e['seconds'][p]['median']:.2f} ms" for p in PASSES]
            cells += [f"{e['peak_bytes'][p] / 2**20:.2f} MiB" for p in PASSES]
        else:
            cells = [_times(e[key], base[key]) for key in ("parameters", "multiply_adds")]
            for p in PASSES:
                r = e["time_ratio"][p]
                cells.append(f"{r['median']:.2f}x ({r['q1']:.2f} to {r['q3']:.2f})")
            cells += [_times(e["peak_bytes"][p], base["peak_bytes"][p]) for p in PASSES]
        rows.append([f"`{name}`", *cells])
    note = (
        f"{machine_text(results['machine'])}. {shape['batch']} images of {shape['size']} x "
        f"{shape['size']}, {shape['channels']} channels, kernel {shape['kernel_size']} x "
        f"{shape['kernel_size']}; mask heads: {shape['instances']} instances. Medians of "
        f"{shape['rounds']} rounds, quartiles in brackets."
    )
    return f"{note}\n\n{markdown_table(head, rows)}"


def _times(own: int, base: int) -> str:
    return f"{own / base:.2f}x" if own else "none"


def chart(results: dict[str, Any]) -> Figure:
    """Times relative to the static layer."""
    entries, facts = results["layers"], results["machine"]
    dynamic = {name: e["time_ratio"] for name, e in entries.items() if name != e["base"]}
    where = facts.get("gpu", f"{facts['cpu']}, {facts['threads']} threads")
    title = f"Time relative to nn.Conv2d (mask head: to fixed weights), {where}"
    figure = new_figure(6.6, 3.6, title)
    draw_ratios(figure.subplots(), {p: {n: r[p] for n, r in dynamic.items()} for p in PASSES})
    return figure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="small shapes, to try it")
    parser.add_argument("--rounds", type=int, default=30, help="samples of each time")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--output", default="out/benchmark", help="folder of JSON and chart")
    parser.add_argument("--page", help="a Markdown page whose table is replaced")


def run(args: argparse.Namespace) -> None:
    """Measure, print, and write JSON, chart and (in a page) the table."""
    if args.rounds < 1:
        raise ValueError(f"rounds is {args.rounds}; 1 or more is allowed")
    device = pick_device(args.device)
    shape = LayerShape(8, 6, 2, instances=3) if args.quick else LayerShape()
    results = measure(shape, device, args.rounds)
    text = table(results)
    print(text)
    stem = Path(args.output) / f"layers_{device.type}"
    write_json(results, stem.with_suffix(".json"))
    save(chart(results), stem.with_suffix(".png"))
    if args.page is not None:
        write_between(Path(args.page), f"benchmark layers {device.type}", text)
    print(f"\nwritten: {stem}.json, {stem}.png")
