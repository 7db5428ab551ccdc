"""What each dynamic layer costs, relative to nn.Conv2d of the same shape."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from condseg import layers
from condseg.inference.device import pick_device
from condseg.models.mask.head import DynamicMaskHead
from studies.benchmarks.inputs import mask_queries
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
from studies.report import machine_text, markdown_table, spread_text, write_between, write_json

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


class Candidate(NamedTuple):
    """A layer with its passes, and the name of the static layer that it is compared with."""

    base: str
    module: nn.Module
    forward: Run
    forward_backward: Run


def candidate(
    base: str,
    module: nn.Module,
    inputs: Sequence[Tensor],
    call: Callable[..., Tensor] | None = None,
) -> Candidate:
    """Passes of a layer: in evaluation, and in training with gradients of inputs and parameters."""
    call = call or module.to(inputs[0].device)

    def forward() -> None:
        module.eval()
        with torch.inference_mode():
            call(*inputs)

    def forward_backward() -> None:
        module.train()
        leaves = [x.detach().requires_grad_() for x in inputs]
        sources = [*leaves, *module.parameters()]
        torch.autograd.grad(call(*leaves).sum(), sources, allow_unused=True)

    return Candidate(base, module, forward, forward_backward)


def candidates(shape: LayerShape, device: torch.device) -> dict[str, Candidate]:
    """nn.Conv2d, the layers, a mask head of fixed weights, and the dynamic mask head."""
    torch.manual_seed(0)
    channels, maps = shape.channels, (shape.size, shape.size)
    x, guide = (torch.randn(shape.batch, channels, *maps, device=device) for _ in range(2))
    slots: dict[str, Callable[..., nn.Module]] = {
        BASE: nn.Conv2d,
        "CondConv2d": layers.CondConv2d,
        "DyConv2d": layers.DyConv2d,
        "DyNetConv2d": layers.DyNetConv2d,
        "ODConv2d 1x": partial(layers.ODConv2d, num_experts=1),
        "ODConv2d 4x": partial(layers.ODConv2d, num_experts=4),
        "DynamicConv2d": layers.DynamicConv2d,
    }
    window = {"kernel_size": shape.kernel_size, "padding": shape.kernel_size // 2}
    entries = {
        name: candidate(BASE, build(channels, channels, **window), (x,))
        for name, build in slots.items()
    }
    for filter_ in (
        layers.DynamicLocalFilter2d,
        layers.DynamicMultiScaleFilter2d,
        layers.DynamicDilatedPyramid2d,
    ):
        module = filter_(channels, channels, channels)
        entries[filter_.__name__] = candidate(BASE, module, (x, guide))
    head = DynamicMaskHead(out_stride=8)
    queries = mask_queries(shape.instances, maps, head.num_params, device, shape.batch)
    features = torch.randn(shape.batch, head.in_channels, *maps, device=device)
    sizes = [(inputs, outputs) for outputs, inputs in head.layers]
    parts = [part for size in sizes for part in (nn.Conv2d(*size, 1), nn.ReLU())]
    static = nn.Sequential(*parts[:-1]).to(device)
    relative = torch.rand(shape.instances, sizes[0][0] - head.in_channels, *maps, device=device)

    def fixed(features: Tensor) -> Any:
        return static(torch.cat((relative, features[queries.image_index]), 1))

    def dynamic(features: Tensor, params: Tensor) -> Any:
        return head(features, replace(queries, params=params))

    entries[MASK_BASE] = candidate(MASK_BASE, static, (features,), fixed)
    inputs = features, queries.params
    return {**entries, "DynamicMaskHead": candidate(MASK_BASE, head, inputs, dynamic)}


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
            cells += [spread_text(e["time_ratio"][p]) for p in PASSES]
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


def run(args: argparse.Namespace) -> None:
    """Measure, print, and write JSON, chart and (in a page) the table."""
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
