"""Looks inside the dynamic layers of a trained model: whether the dynamics do anything.

Each dynamic layer is watched while the model runs on pictures. What is asked of it:

- its attentions, axis by axis, over all pictures and over those that show a class;
- how alike its experts are;
- how much of its kernel changes at all. With K_i the kernel of picture i and M their mean,
  change = mean |K_i - M|^2 / mean |K_i|^2, between 0 (a static convolution would do) and 1. For a
  layer with a kernel at each pixel the mean is over the pixels of a picture. The same number says
  how much an attention changes.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from condseg.data.transforms import resized
from condseg.inference.predictor import Predictor
from condseg.inference.sources import find_depths, find_images, read_pair
from condseg.layers import (
    CondConv2d,
    DyConv2d,
    DynamicContextFilter2d,
    DynamicConv2d,
    DynamicDilatedFilter2d,
    DynamicLocalFilter2d,
    DyNetConv2d,
    ODConv2d,
)
from condseg.layers.parts import full_precision, resize_like
from condseg.layers.per_sample import mix

AXES = ("kernel", "filter", "channel", "spatial")
Attentions = dict[str, Tensor]


@functools.singledispatch
def attentions(layer: nn.Module, *inputs: Tensor) -> Attentions:
    """What a layer attends to, for each picture: axis -> (B, entries); empty without attentions.

    ``kernel`` runs over the experts, ``filter`` over output channels, ``channel`` over input
    channels, ``spatial`` over the kernel's taps.
    """
    return {}


@attentions.register(CondConv2d)
def _(layer: CondConv2d, x: Tensor) -> Attentions:
    return {"kernel": layer.routing_weights(x)}


@attentions.register(DyConv2d)
def _(layer: DyConv2d, x: Tensor) -> Attentions:
    with full_precision(x):
        return {"kernel": layer.attention(x, layer.temperature)}


@attentions.register(DyNetConv2d)
def _(layer: DyNetConv2d, x: Tensor) -> Attentions:
    shares = layer.coefficients(x)
    # An output channel has a mixture of its own: how much it takes of its first experts is drawn.
    return {"kernel": shares.mean(2), "filter": shares.amax(1)}


@attentions.register(ODConv2d)
def _(layer: ODConv2d, x: Tensor) -> Attentions:
    with full_precision(x):
        found = layer.attention(x, layer.temperature)._asdict()
    return {axis: found[axis] for axis in AXES if found[axis] is not None}


@attentions.register(DynamicContextFilter2d)
def _(layer: DynamicContextFilter2d, x: Tensor, guide: Tensor | None = None) -> Attentions:
    taps = layer.filters(x if guide is None else guide).abs().flatten(2)
    return {"spatial": (taps / taps.sum(2, keepdim=True).clamp_min(1e-12)).mean(1)}


@functools.singledispatch
def kernels(layer: nn.Module, *inputs: Tensor) -> Tensor | None:
    """The kernel of each picture, (B, ...); None where pictures have no kernel of their own."""
    return None


@kernels.register(CondConv2d)
@kernels.register(DyConv2d)
def _(layer: CondConv2d | DyConv2d, x: Tensor) -> Tensor | None:
    return mix(attentions(layer, x)["kernel"], layer.weight)


@kernels.register(DyNetConv2d)
def _(layer: DyNetConv2d, x: Tensor) -> Tensor | None:
    return mix(layer.coefficients(x), layer.weight)


@kernels.register(ODConv2d)
def _(layer: ODConv2d, x: Tensor) -> Tensor | None:
    found = attentions(layer, x)
    kernel = mix(found["kernel"], layer.weight) if "kernel" in found else layer.weight
    kernel = kernel.flatten(3)  # (B or 1, O, C / groups, taps)
    kernel = kernel.unflatten(1, (layer.groups, -1))
    kernel = kernel * found["channel"].unflatten(1, (layer.groups, 1, -1, 1))
    if "filter" in found:
        kernel = kernel * found["filter"].unflatten(1, (layer.groups, -1, 1, 1))
    if "spatial" in found:
        kernel = kernel * found["spatial"][:, None, None, None]
    attended: Tensor = kernel
    return attended


@kernels.register(DynamicConv2d)
def _(layer: DynamicConv2d, x: Tensor, guide: Tensor | None = None) -> Tensor | None:
    generated: Tensor = layer.kernels(x if guide is None else guide)
    return generated


@kernels.register(DynamicContextFilter2d)
def _(layer: DynamicContextFilter2d, x: Tensor, guide: Tensor | None = None) -> Tensor | None:
    return layer.filters(x if guide is None else guide)


@functools.singledispatch
def pixel_kernels(layer: nn.Module, *inputs: Tensor) -> Tensor | None:
    """The kernel of each pixel, (B, C or 1, taps, H, W); None where pixels share one."""
    return None


@pixel_kernels.register(DynamicDilatedFilter2d)
def _(layer: DynamicDilatedFilter2d, x: Tensor, guide: Tensor) -> Tensor | None:
    return layer.kernels(resize_like(guide, x))


@pixel_kernels.register(DynamicLocalFilter2d)
def _(layer: DynamicLocalFilter2d, x: Tensor, guide: Tensor) -> Tensor | None:
    by_channel: Tensor = layer.filters(resize_like(guide, x)).unflatten(1, (layer.groups, -1))
    return by_channel


KINDS = (
    CondConv2d,
    DyConv2d,
    DyNetConv2d,
    ODConv2d,
    DynamicConv2d,
    DynamicContextFilter2d,
    DynamicDilatedFilter2d,
    DynamicLocalFilter2d,
)


@dataclass(frozen=True, slots=True)
class PixelKernels:
    """What the kernels of one layer do on one picture; maps over its pixels, channels averaged.

    Attributes:
        layer: its name in the network.
        picture: position in :attr:`Inspection.pictures`.
        dilation: distance of neighbouring taps in cells.
        cell: pixels of the network's input a cell.
        energy: (H, W) root of the sum of squared taps.
        beside: (H, W) share of that energy (squared) that does not lie on the centre.
        shift: (2, H, W) centre of mass (x, y) of the taps' absolute values, in cells from the
            centre, dilation included.
        departure: (H, W) |k_p - m| / rms |k|, with m the mean kernel of the picture.
        change: see the module.
    """

    layer: str
    picture: int
    dilation: int
    cell: float
    energy: Float[np.ndarray, "h w"]
    beside: Float[np.ndarray, "h w"]
    shift: Float[np.ndarray, "2 h w"]
    departure: Float[np.ndarray, "h w"]
    change: float

    def numbers(self) -> dict[str, Any]:
        length = np.hypot(*self.shift)
        return {
            "layer": self.layer,
            "dilation": self.dilation,
            "change": self.change,
            "energy": _spread(self.energy),
            "beside": _spread(self.beside),
            "shift_in_cells": _spread(length),
            "mean_shift_xy_in_cells": [float(v) for v in self.shift.mean((1, 2))],
        }


@dataclass(slots=True)
class LayerRecord:
    """What was seen of one layer.

    Attributes:
        name, kind: of the layer in the network.
        kernel_size: of its kernel.
        attentions: axis -> (pictures, entries).
        experts: (E, E) cosines between the experts' kernels; None with fewer than two.
        change: of the kernel over the pictures (or pixels, averaged over pictures); NaN where
            one picture was all there was.
    """

    name: str
    kind: str
    kernel_size: tuple[int, ...]
    attentions: dict[str, Float[np.ndarray, "n _k"]] = field(default_factory=dict)
    experts: Float[np.ndarray, "e e"] | None = None
    change: float = math.nan

    def attention_change(self, axis: str) -> float:
        """How much that attention changes over the pictures; NaN with one picture or without it."""
        values = self.attentions.get(axis)
        if values is None or len(values) < 2:
            return math.nan
        return _change(values.mean(0), float((values**2).sum(1).mean()))

    @property
    def likeness(self) -> float:
        """Mean cosine between two experts; NaN with fewer than two."""
        if self.experts is None:
            return math.nan
        return float(self.experts[~np.eye(len(self.experts), dtype=bool)].mean())

    @property
    def experts_in_use(self) -> float:
        """exp(entropy) of a picture's shares of the experts, averaged; NaN without such shares."""
        values = self.attentions.get("kernel")
        if values is None:
            return math.nan
        shares = values / values.sum(1, keepdims=True).clip(1e-12)
        entropy = -(shares * np.log(shares.clip(1e-12))).sum(1)
        return float(np.exp(entropy).mean())


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was seen of all dynamic layers.

    Attributes:
        pictures: files, in order.
        classes: class -> positions of the pictures in which the model found it.
        score: least score at which the model's own detections count.
        layers: in the network's order.
        pixel_kernels: one a picture and a layer with kernels at each pixel.
        failed: files that could not be read, with the reason.
    """

    pictures: list[Path]
    classes: dict[str, list[int]]
    score: float
    layers: list[LayerRecord]
    pixel_kernels: list[PixelKernels]
    failed: list[str]

    def by_class(self, layer: LayerRecord, axis: str) -> dict[str, Float[np.ndarray, " k"]]:
        """Attention averaged over the pictures in which the model found the class."""
        return {name: layer.attentions[axis][at].mean(0) for name, at in self.classes.items()}

    def to_json(self) -> dict[str, Any]:
        """All numbers, plain; what is not defined is null."""
        layers = [
            {
                "name": layer.name,
                "kind": layer.kind,
                "kernel_size": list(layer.kernel_size),
                "change": _plain(layer.change),
                "experts_likeness": _plain(layer.likeness),
                "experts_in_use": _plain(layer.experts_in_use),
                "experts_cosine": None if layer.experts is None else layer.experts.tolist(),
                "attentions": {
                    axis: {
                        "change": _plain(layer.attention_change(axis)),
                        "mean": values.mean(0).tolist(),
                        "std": values.std(0).tolist(),
                        "by_class": {k: v.tolist() for k, v in self.by_class(layer, axis).items()},
                    }
                    for axis, values in layer.attentions.items()
                },
            }
            for layer in self.layers
        ]
        pictures = [
            {
                "file": str(path),
                "classes": [name for name, at in self.classes.items() if i in at],
                "pixel_kernels": [k.numbers() for k in self.pixel_kernels if k.picture == i],
            }
            for i, path in enumerate(self.pictures)
        ]
        return {"score": self.score, "failed": self.failed, "pictures": pictures, "layers": layers}

    def table(self) -> str:
        """One line a layer."""
        head = ("layer", "kind", "change", *AXES, "alike", "in use")
        lines: list[tuple[str, ...]] = [head]
        for layer, name in zip(self.layers, short_names(self.layers), strict=True):
            percents = [layer.change, *map(layer.attention_change, AXES)]
            experts = layer.attentions.get("kernel")
            count = "" if experts is None else f" of {experts.shape[1]}"
            used = layer.experts_in_use
            lines.append(
                (
                    name,
                    layer.kind,
                    *("" if math.isnan(p) else f"{p:.2%}" for p in percents),
                    "" if math.isnan(layer.likeness) else f"{layer.likeness:.2f}",
                    "" if math.isnan(used) else f"{used:.2f}{count}",
                )
            )
        widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if i < 2 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )


def short_names(layers: Sequence[LayerRecord]) -> list[str]:
    """Names of the layers without the modules that all of them are inside of."""
    parts = [layer.name.split(".") for layer in layers]
    common = 0
    while all(len(p) > common + 1 and p[common] == parts[0][common] for p in parts):
        common += 1
    # A number alone says little: "blocks.0.conv", not "0.conv".
    while common and any(p[common].isdigit() for p in parts):
        common -= 1
    return [".".join(p[common:]) for p in parts]


def inspect(
    predictor: Predictor,
    inputs: Sequence[str],
    score: float = 0.4,
    depth: str | Path | None = None,
) -> Inspection:
    """Run the model on pictures and watch its dynamic layers.

    Args:
        predictor: the model; at each picture alone, as it predicts.
        inputs: picture files, folders, patterns.
        score: least score at which a detection says that its class is in the picture.
        depth: depth map of the one picture, or a folder of them, for a network that takes depth.

    Raises:
        ValueError: the model has no dynamic layer, no picture was found or could be read,
            ``score`` is outside 0..1, or the network takes depth and there is none.
    """
    if not 0 <= score <= 1:
        raise ValueError(f"score is {score}; 0..1 is allowed")
    if not any(isinstance(module, KINDS) for module in predictor.network.modules()):
        raise ValueError(
            "the checkpoint's network is static: there is no dynamic layer to look at "
            "(model.network.backbone.conv and model.network.mask_filter make it dynamic)"
        )
    files, without = find_images(inputs)
    failed = [f"found no pictures in {text!r}" for text in without]
    pictures: list[Path] = []
    classes: dict[str, list[int]] = {}
    with _watch(predictor.network) as watched:
        for path, depth_map in zip(files, find_depths(predictor, files, depth), strict=True):
            try:
                image, distances = read_pair(path, depth_map)
            except ValueError as error:
                failed.append(str(error))
                continue
            restored = predictor.restored
            size = resized(image.shape[:2], restored.short_side, restored.max_long_side)
            watched.begin(len(pictures), size)
            found = predictor(image, distances)
            for label in sorted(set(found.labels[found.scores >= score].tolist())):
                classes.setdefault(predictor.names[label], []).append(len(pictures))
            pictures.append(path)
    if not pictures:
        raise ValueError(f"no picture to look at: {'; '.join(failed)}")
    order = [name for name in predictor.names if name in classes]
    ordered = {name: classes[name] for name in order}
    return Inspection(pictures, ordered, score, *watched.results(), failed)


class _Watched:
    """Collects from every layer what it does with each picture."""

    def __init__(self, network: nn.Module) -> None:
        self.layers = {n: m for n, m in network.named_modules() if isinstance(m, KINDS)}
        self.attentions: dict[str, dict[str, list[Tensor]]] = {n: {} for n in self.layers}
        self.kernels: dict[str, tuple[Tensor, float, int]] = {}
        self.pixels: list[PixelKernels] = []
        self.picture, self.size, self.padded = 0, (1, 1), (1, 1)

    def begin(self, picture: int, size: tuple[int, int]) -> None:
        self.picture, self.size = picture, size

    def see(self, name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        for axis, values in attentions(layer, *inputs).items():
            self.attentions[name].setdefault(axis, []).append(values[0].cpu())
        kernel = kernels(layer, *inputs)
        if kernel is not None:
            kernel = kernel[0].double().cpu()
            total, energy, count = self.kernels.get(name, (torch.zeros_like(kernel), 0.0, 0))
            energy += float(kernel.square().sum())
            self.kernels[name] = (total + kernel, energy, count + 1)
        field_ = pixel_kernels(layer, *inputs)
        if field_ is not None:
            self.pixels.append(self._pixel_kernels(name, layer, field_[0].double().cpu()))

    def _pixel_kernels(
        self, name: str, layer: nn.Module, k: Float[Tensor, "c t h w"]
    ) -> PixelKernels:
        assert isinstance(layer, (DynamicDilatedFilter2d, DynamicLocalFilter2d))
        kh, kw = _sizes(layer)
        cell = self.padded[0] / k.shape[2]
        rows, columns = (max(1, math.ceil(side / cell)) for side in self.size)
        k = k[:, :, :rows, :columns]  # without the padding
        squares = k.square().mean(0)  # (T, H, W)
        energy = squares.sum(0)
        taps = torch.arange(kh * kw)
        offsets = torch.stack((taps % kw - kw // 2, taps // kw - kh // 2)) * layer.dilation
        weights = k.abs().sum(0)
        weights = weights / weights.sum(0).clamp_min(1e-12)
        shift = torch.einsum("at,thw->ahw", offsets.double(), weights)
        mean = k.mean((2, 3), keepdim=True)
        away = (k - mean).square().mean(0).sum(0)
        total = float(energy.mean())
        return PixelKernels(
            name,
            self.picture,
            layer.dilation,
            cell,
            energy.sqrt().numpy(),
            (1 - squares[kh * kw // 2] / energy.clamp_min(1e-12)).numpy(),
            shift.numpy(),
            (away / max(total, 1e-12)).sqrt().numpy(),
            float(away.mean()) / max(total, 1e-12),
        )

    def results(self) -> tuple[list[LayerRecord], list[PixelKernels]]:
        records = []
        for name, layer in self.layers.items():
            record = LayerRecord(name, type(layer).__name__, _sizes(layer))
            record.attentions = {
                axis: torch.stack(values).double().numpy()
                for axis, values in self.attentions[name].items()
            }
            record.experts = _expert_cosines(layer)
            if name in self.kernels:
                total, energy, count = self.kernels[name]
                if count > 1:
                    record.change = _change((total / count).numpy(), energy / count)
            changes = [p.change for p in self.pixels if p.layer == name]
            if changes:
                record.change = float(np.mean(changes))
            records.append(record)
        return records, self.pixels


@contextmanager
def _watch(network: nn.Module) -> Iterator[_Watched]:
    watched = _Watched(network)

    def padded(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        watched.padded = tuple(inputs[0].shape[-2:])

    handles = [network.register_forward_pre_hook(padded)]
    for name, layer in watched.layers.items():

        def see(module: nn.Module, inputs: tuple[Any, ...], name: str = name) -> None:
            watched.see(name, module, inputs)

        handles.append(layer.register_forward_pre_hook(see))
    try:
        yield watched
    finally:
        for handle in handles:
            handle.remove()


def _sizes(layer: nn.Module) -> tuple[int, ...]:
    size = layer.filter_size if isinstance(layer, DynamicContextFilter2d) else layer.kernel_size
    return (size, size) if isinstance(size, int) else tuple(size)  # type: ignore[arg-type]


def _expert_cosines(layer: nn.Module) -> Float[np.ndarray, "e e"] | None:
    experts = getattr(layer, "num_experts", 1)
    if experts < 2:
        return None
    assert isinstance(layer.weight, Tensor)
    flat = F.normalize(layer.weight.detach().double().flatten(1), dim=1)
    return (flat @ flat.T).cpu().numpy()


def _change(mean: NDArray[np.float64], energy: float) -> float:
    """mean |K_i - M|^2 / mean |K_i|^2, from M and from mean |K_i|^2."""
    return max(0.0, 1 - float((mean**2).sum()) / energy) if energy > 0 else 0.0


def _spread(values: NDArray[np.float64]) -> dict[str, float]:
    low, middle, high = np.percentile(values, (5, 50, 95))
    return {"p5": float(low), "median": float(middle), "p95": float(high)}


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value


def write_json(inspection: Inspection, path: Path, **also: str) -> None:
    """Write all numbers, and what else the caller says of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**also, **inspection.to_json()}, indent=1, ensure_ascii=False)
    path.write_text(text, encoding="utf-8")
