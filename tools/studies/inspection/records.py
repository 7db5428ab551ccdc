"""What an inspection has measured: plain values, a table, and what the JSON file holds.

With K_i the kernel of image i and M their mean, a kernel's change is
mean |K_i - M|^2 / mean |K_i|^2: 0 for a static convolution, 1 for kernels that have nothing in
common. For a layer with a kernel per pixel the mean is over the pixels of an image. The change of
an attention is the same ratio.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

AXES = ("kernel", "filter", "channel", "spatial")


@dataclass(frozen=True, slots=True)
class PixelKernels:
    """The kernels of one layer at each pixel of one image; maps, averaged over the channels.

    Attributes:
        layer: its name in the network.
        image: index in :attr:`Inspection.images`.
        dilation: distance of neighbouring taps in cells.
        cell: pixels of the network's input per cell.
        energy: (H, W) root of the sum of squared taps.
        off_centre: (H, W) fraction of the squared taps that is not the centre's.
        shift: (2, H, W) centre of mass (x, y) of the taps' absolute values, in cells from the
            centre, dilation included.
        deviation: (H, W) |k_p - m| / rms |k|, with m the image's mean kernel.
        change: of the kernel over the pixels.
    """

    layer: str
    image: int
    dilation: int
    cell: float
    energy: Float[np.ndarray, "h w"]
    off_centre: Float[np.ndarray, "h w"]
    shift: Float[np.ndarray, "2 h w"]
    deviation: Float[np.ndarray, "h w"]
    change: float

    def as_dict(self) -> dict[str, Any]:
        """Its numbers as plain data, of maps the means."""
        return {
            "layer": self.layer,
            "dilation": self.dilation,
            "change": self.change,
            "mean_energy": float(self.energy.mean()),
            "mean_off_centre": float(self.off_centre.mean()),
            "mean_shift_in_cells": float(np.hypot(*self.shift).mean()),
            "mean_shift_xy_in_cells": self.shift.mean((1, 2)).tolist(),
        }


@dataclass(slots=True)
class LayerRecord:
    """One layer.

    Attributes:
        name, kind: name in the network, name of the class.
        kernel_size: of its kernel.
        attentions: axis -> (images, entries).
        experts: (E, E) cosines between the experts' kernels; None with fewer than two.
        change: of the kernel over the images (or over pixels, averaged over images); NaN for a
            single image.
    """

    name: str
    kind: str
    kernel_size: tuple[int, ...]
    attentions: dict[str, Float[np.ndarray, "n _k"]] = field(default_factory=dict)
    experts: Float[np.ndarray, "e e"] | None = None
    change: float = math.nan

    def attention_change(self, axis: str) -> float:
        """Change of an attention over the images; NaN for a single image or without it."""
        values = self.attentions.get(axis)
        if values is None or len(values) < 2:
            return math.nan
        return change(values.mean(0), float((values**2).sum(1).mean()))

    @property
    def expert_similarity(self) -> float:
        """Mean cosine between two experts; NaN with fewer than two."""
        if self.experts is None:
            return math.nan
        return float(self.experts[~np.eye(len(self.experts), dtype=bool)].mean())


@dataclass(frozen=True, slots=True)
class Inspection:
    """All dynamic layers.

    Attributes:
        images: files, in order.
        classes: class -> indices of the images in which the model detected it.
        score: min score of these detections.
        layers: in the network's order.
        pixel_kernels: one for each image and layer with a kernel per pixel.
        failed: why files could not be read.
    """

    images: list[Path]
    classes: dict[str, list[int]]
    score: float
    layers: list[LayerRecord]
    pixel_kernels: list[PixelKernels]
    failed: list[str]

    def by_class(self, layer: LayerRecord, axis: str) -> dict[str, Float[np.ndarray, " k"]]:
        """An attention averaged over the images in which the model detected the class."""
        return {name: layer.attentions[axis][at].mean(0) for name, at in self.classes.items()}

    def as_dict(self) -> dict[str, Any]:
        """All numbers as plain data; NaN is None."""
        layers = [
            {
                "name": layer.name,
                "kind": layer.kind,
                "kernel_size": list(layer.kernel_size),
                "change": _plain(layer.change),
                "expert_similarity": _plain(layer.expert_similarity),
                "expert_cosines": None if layer.experts is None else layer.experts.tolist(),
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
        images = [
            {
                "file": str(path),
                "classes": [name for name, at in self.classes.items() if i in at],
                "pixel_kernels": [k.as_dict() for k in self.pixel_kernels if k.image == i],
            }
            for i, path in enumerate(self.images)
        ]
        return {"score": self.score, "failed": self.failed, "images": images, "layers": layers}

    def table(self) -> str:
        """One line per layer."""
        rows: list[tuple[str, ...]] = [("layer", "kind", "change", *AXES, "similarity")]
        for layer, name in zip(self.layers, short_names(self.layers), strict=True):
            changes = [layer.change, *map(layer.attention_change, AXES)]
            numbers = [(f"{value:.2%}", value) for value in changes]
            numbers.append((f"{layer.expert_similarity:.2f}", layer.expert_similarity))
            cells = ("" if math.isnan(value) else text for text, value in numbers)
            rows.append((name, layer.kind, *cells))
        widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
        lines = (
            [f"{cell:{'<' if i < 2 else '>'}{widths[i]}}" for i, cell in enumerate(row)]
            for row in rows
        )
        return "\n".join("  ".join(line).rstrip() for line in lines)


def short_names(layers: Sequence[LayerRecord]) -> list[str]:
    """Names of the layers without the modules that contain all of them."""
    parts = [layer.name.split(".") for layer in layers]
    common = 0
    while all(len(p) > common + 1 and p[common] == parts[0][common] for p in parts):
        common += 1
    # A number alone says little: "blocks.0.conv", not "0.conv".
    while common and any(p[common].isdigit() for p in parts):
        common -= 1
    return [".".join(p[common:]) for p in parts]


def change(mean: NDArray[np.float64], energy: float) -> float:
    """mean |K_i - M|^2 / mean |K_i|^2, from M and mean |K_i|^2."""
    return max(0.0, 1 - float((mean**2).sum()) / energy) if energy > 0 else 0.0


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value
