"""Charts of an inspection."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from condseg.data.images import read_image
from studies.charts import DIVERGING, ORANGE, diverging, new_figure, save, show
from studies.inspection.records import AXES, Inspection, LayerRecord, short_names
from studies.report import write_json

MAX_CLASSES = 12
MEANING = {
    "kernel": "weight of each expert",
    "filter": "weight of each output channel",
    "channel": "weight of each input channel",
    "spatial": "weight of each tap of the kernel",
}


def write_figures(
    inspection: Inspection, folder: Path, max_images: int = 8, **facts: str
) -> list[Path]:
    """Draw an inspection and write its numbers; the files.

    Args:
        inspection: what to draw.
        folder: gets ``layers.png``, ``attention_<axis>.png``, ``experts.png``,
            ``pixels_<image>.png`` (each if there is something to draw) and ``inspection.json``.
        max_images: images whose kernels at each pixel are drawn; the JSON file has all.
        facts: further entries of the JSON file, such as the checkpoint.
    """
    files = [save(layers_figure(inspection), folder / "layers.png")]
    for axis in AXES:
        if any(axis in layer.attentions for layer in inspection.layers):
            figure = attention_figure(inspection, axis)
            files.append(save(figure, folder / f"attention_{axis}.png"))
    if any(layer.experts is not None for layer in inspection.layers):
        files.append(save(experts_figure(inspection), folder / "experts.png"))
    for i in sorted({k.image for k in inspection.pixel_kernels})[:max_images]:
        name = f"pixels_{i:03d}_{inspection.images[i].stem}.png"
        files.append(save(pixels_figure(inspection, i), folder / name))
    content = {**facts, **inspection.as_dict()}
    return [*files, write_json(content, folder / "inspection.json")]


def layers_figure(inspection: Inspection) -> Figure:
    """How much each layer's kernel and each of its attentions change from image to image."""
    layers = inspection.layers
    columns = ("kernel", *(f"{axis}\nattention" for axis in AXES), "expert\nsimilarity")
    values = np.array(
        [[x.change, *map(x.attention_change, AXES), x.expert_similarity] for x in layers]
    )
    shades = values.clip(0)
    shades[:, :-1] **= 0.5  # brings out small changes; a cosine is drawn as it is
    figure = new_figure(9, 0.22 * len(layers) + 1.4)
    figure.suptitle(
        f"Change from image to image ({len(inspection.images)} images): "
        "mean |K_i - M|² / mean |K_i|², M the mean\n"
        "0 % static, 100 % nothing in common; kernels per pixel: over the pixels. "
        "Expert similarity: mean cosine",
        x=0.01, ha="left", fontsize=9,
    )  # fmt: skip
    axes = figure.subplots()
    show(axes, shades, vmin=0, vmax=1, aspect="auto")
    axes.set_yticks(range(len(layers)), short_names(layers))
    axes.set_xticks(range(len(columns)), columns)
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    for (row, column), value in np.ndenumerate(values):
        if not math.isnan(value):
            text = f"{value:.2%}" if column < len(columns) - 1 else f"{value:.3f}"
            colour = "white" if shades[row, column] < 0.6 else "black"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    return figure


def attention_figure(inspection: Inspection, axis: str) -> Figure:
    """One attention of every layer: its mean over all images, and each class's deviation."""
    layers = [layer for layer in inspection.layers if axis in layer.attentions]
    frequent = sorted(inspection.classes, key=lambda name: -len(inspection.classes[name]))
    classes = [name for name in inspection.classes if name in frequent[:MAX_CLASSES]]
    means = [layer.attentions[axis].mean(0) for layer in layers]
    deviations = [
        np.array([inspection.by_class(layer, axis)[name] - mean for name in classes])
        for layer, mean in zip(layers, means, strict=True)
    ]  # (classes, entries) each
    joined = np.concatenate(means)
    low, high = float(joined.min()), float(joined.max())
    if high - low < 0.02:  # do not enlarge rounding errors
        low, high = min(low, 0.0), max(high, 1.0)
    sizes = np.abs(np.concatenate([d.ravel() for d in deviations]))
    limit = max(float(np.percentile(sizes, 99)), 1e-6) if sizes.size else 1e-6
    rows = math.ceil(len(layers) / 2)
    figure = new_figure(11, rows * (0.55 + 0.13 * len(classes)) + 1.3)
    counts = ", ".join(f"{name} ({len(inspection.classes[name])})" for name in classes) or "none"
    figure.suptitle(
        f"Attention along the {axis} axis: {MEANING[axis]}\nleft: mean of "
        f"{len(inspection.images)} images; right: class minus mean, for classes detected with a "
        f"score of {inspection.score:g} or more (images): {counts}",
        x=0.01, ha="left", fontsize=9, wrap=True,
    )  # fmt: skip
    grid = figure.subplots(rows, 4, squeeze=False, width_ratios=[1, 1.6] * 2)
    for axes in grid.flat:
        axes.axis("off")
    pairs = grid.reshape(-1, 2)
    panels = zip(pairs, layers, short_names(layers), means, deviations, strict=False)
    for (left, right), layer, name, mean, deviation in panels:
        left.axis("on")
        aspect, rows_of = ("equal", layer.kernel_size[0]) if axis == "spatial" else ("auto", 1)
        order = np.arange(len(mean)) if axis in ("kernel", "spatial") else np.argsort(-mean)
        first = show(left, mean[order].reshape(rows_of, -1), name[-40:],
                     vmin=low, vmax=high, aspect=aspect)  # fmt: skip
        if classes:
            right.axis("on")
            _deviations(right, layer, deviation[:, order], axis, classes, limit)
    figure.colorbar(first, ax=grid[:, 0], location="bottom", label="mean")
    if classes:
        second = next(axes.images[0] for axes in grid[:, 1] if axes.images)
        figure.colorbar(second, ax=grid[:, 1], location="bottom", label="class minus mean")
    return figure


def _deviations(
    axes: Any, layer: LayerRecord, values: Any, axis: str, classes: list[str], limit: float
) -> None:
    """A row per class; of the taps of a kernel, a square per class."""
    options: dict[str, Any] = {"cmap": DIVERGING, "vmin": -limit, "vmax": limit}
    if axis != "spatial":
        show(axes, values, aspect="auto", **options)
        axes.set_yticks(range(len(classes)), classes, fontsize=7)
        return
    kh, kw = layer.kernel_size
    squares = np.pad(values.reshape(-1, kh, kw), ((0, 0), (0, 0), (0, 1)), constant_values=np.nan)
    show(axes, np.concatenate(list(squares), axis=1), **options)
    middles = [(kw + 1) * i + (kw - 1) / 2 for i in range(len(classes))]
    axes.set_xticks(middles, classes, fontsize=7, rotation=45)


def experts_figure(inspection: Inspection) -> Figure:
    """Cosines between the kernels of a layer's experts."""
    mixed = [layer for layer in inspection.layers if layer.experts is not None]
    rows = math.ceil(len(mixed) / 6)
    title = "Cosine between the experts' kernels: 1 equal (as they start), 0 nothing in common"
    figure = new_figure(10, 1.7 * rows + 0.8, title)
    grid = figure.subplots(rows, 6, squeeze=False)
    for axes in grid.flat[len(mixed) :]:
        axes.axis("off")
    for axes, layer, name in zip(grid.flat, mixed, short_names(mixed), strict=False):
        last = diverging(axes, layer.experts, name[-20:], limit=1.0)
        distance = 1 - layer.expert_similarity
        axes.set_xlabel(f"mean {1 - distance:.3f}" if distance > 0.01 else f"1 - {distance:.0e}")
    figure.colorbar(last, ax=grid)
    return figure


def pixels_figure(inspection: Inspection, image: int) -> Figure:
    """The kernels at each pixel of one image, a row for each layer (HDFNet: each dilation)."""
    pixels = read_image(inspection.images[image])
    kernels = [k for k in inspection.pixel_kernels if k.image == image]
    energies = np.concatenate([k.energy.ravel() for k in kernels])
    low, high = np.percentile(energies, (1, 99))
    top = max(1e-9, max(float(np.percentile(k.deviation, 99)) for k in kernels))
    maps = (
        ("energy of the kernel", "energy", low, max(high, low + 1e-9)),
        ("fraction of it off the centre", "off_centre", 0.0, 1.0),
        ("deviation from the image's mean kernel", "deviation", 0.0, top),
    )
    height = 3.3 * pixels.shape[0] / pixels.shape[1] + 0.8
    title = f"A kernel at each pixel: {inspection.images[image].name}"
    figure = new_figure(13.6, height * len(kernels) + 1, title)
    grid = figure.subplots(len(kernels), 4, squeeze=False)
    for row, k in zip(grid, kernels, strict=True):
        rows, columns = k.energy.shape
        extent = (0, columns, rows, 0)
        longest = max(float(np.percentile(np.hypot(*k.shift), 95)), 1e-9)
        show(row[0], pixels, alpha=0.45, extent=extent)
        every = max(1, math.ceil(columns / 22))
        y, x = np.mgrid[every // 2 : rows : every, every // 2 : columns : every]
        dx, dy = k.shift[:, y, x] / longest * 0.9 * every
        row[0].quiver(x + 0.5, y + 0.5, dx, dy, angles="xy", scale_units="xy", scale=1,
                      color=ORANGE, width=0.004)  # fmt: skip
        row[0].set_title(f"{k.layer}\ndilation {k.dilation}, change {k.change:.1%}")
        row[0].set_xlabel(f"centre of mass, up to {longest:.2f} cells of {k.cell:g} pixels")
        for axes, (_, name, a, b) in zip(row[1:], maps, strict=True):
            show(axes, getattr(k, name), vmin=a, vmax=b, extent=extent)
    for column, (label, *_) in enumerate(maps, start=1):
        first = grid[0, column].images[0]
        figure.colorbar(first, ax=grid[:, column], location="bottom", label=label)
    return figure
