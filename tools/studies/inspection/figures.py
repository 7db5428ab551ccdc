"""Figures of an inspection, in colours that all people tell apart."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np

from condseg.data.images import read_image
from studies.inspection.inspection import (
    AXES,
    Inspection,
    LayerRecord,
    PixelKernels,
    short_names,
    write_json,
)
from studies.panels import (
    ORANGE,
    Colours,
    Image,
    Numbers,
    blank,
    caption,
    column,
    diverging,
    fitted,
    grid,
    heat,
    row,
    save,
    scale,
    sequential,
)

MOST_CLASSES = 12
MEANING = {
    "kernel": "share of each expert",
    "filter": "weight of each output channel",
    "channel": "weight of each input channel",
    "spatial": "weight of each tap of the kernel",
}


def write_figures(
    inspection: Inspection, folder: Path, figures: int = 8, **also: str
) -> list[Path]:
    """Draw all that was seen, and write its numbers.

    Args:
        inspection: what was seen.
        folder: gets ``layers.png``, ``attention_<axis>.png``, ``experts.png``,
            ``pixels_<picture>.png`` and ``inspection.json``, each where there is something for it.
        figures: pictures at most whose kernels at each pixel are drawn; the numbers have all.
        also: facts to note in the JSON, such as the checkpoint.

    Returns:
        The files.
    """
    files = [save(layers_figure(inspection), folder / "layers.png")]
    for axis in AXES:
        if any(axis in layer.attentions for layer in inspection.layers):
            figure = attention_figure(inspection, axis)
            files.append(save(figure, folder / f"attention_{axis}.png"))
    if any(layer.experts is not None for layer in inspection.layers):
        files.append(save(experts_figure(inspection), folder / "experts.png"))
    drawn = sorted({k.picture for k in inspection.pixel_kernels})[:figures]
    for i in drawn:
        stem = f"pixels_{i:03d}_{inspection.pictures[i].stem}.png"
        files.append(save(pixels_figure(inspection, i), folder / stem))
    write_json(inspection, folder / "inspection.json", **also)
    return [*files, folder / "inspection.json"]


def layers_figure(inspection: Inspection) -> Image:
    """How much each layer's kernel and each of its attentions change from picture to picture."""
    columns = ("kernel changes", *(f"{axis} att." for axis in AXES), "experts alike")
    names = [caption(n) for n in short_names(inspection.layers)]
    wide, high = 106, 20
    blue_to_yellow = sequential(0.0, 1.0)
    lines = [row(blank(high, max(n.shape[1] for n in names)), *(_cell(c, wide) for c in columns))]
    for layer, name in zip(inspection.layers, names, strict=True):
        values = [layer.change, *map(layer.attention_change, AXES), layer.likeness]
        label = row(name, blank(1, max(n.shape[1] for n in names) - name.shape[1]), gap=0)
        cells = []
        for i, value in enumerate(values):
            if math.isnan(value):
                cells.append(blank(high, wide))
                continue
            # The root brings out small changes; a cosine is drawn as it is.
            height = math.sqrt(max(value, 0.0)) if i < len(values) - 1 else max(value, 0.0)
            bar = blank(high, 40)
            bar[3:-3] = 235
            bar[3:-3, : max(1, round(40 * min(height, 1)))] = blue_to_yellow(np.array([[height]]))
            text = f"{value:.2%}" if i < len(values) - 1 else f"{value:.3f}"
            cells.append(_fixed(row(bar, caption(text), gap=6), wide))
        lines.append(row(label, *cells))
    many = len(inspection.pictures)
    return column(
        caption(f"How much changes from picture to picture ({many} of them)", 17),
        caption(
            "mean |K_i - M|^2 / mean |K_i|^2, M the mean: 0 % static, 100 % nothing in common; "
        ),
        caption("bars are its root. Kernels of pixels: over the pixels. Alike: mean cosine."),
        blank(6, 1),
        *lines,
        gap=2,
    )


def _cell(text: str, width: int) -> Image:
    return _fixed(caption(text, 13), width)


def _fixed(image: Image, width: int) -> Image:
    return row(image[:, :width], blank(1, max(0, width - image.shape[1])), gap=0)


def attention_figure(inspection: Inspection, axis: str) -> Image:
    """One attention of every layer: over all pictures, and how each class departs from that."""
    attended = [layer for layer in inspection.layers if axis in layer.attentions]
    layers = list(zip(short_names(attended), attended, strict=True))
    often = sorted(inspection.classes, key=lambda name: -len(inspection.classes[name]))
    shown = [name for name in inspection.classes if name in often[:MOST_CLASSES]]
    means = np.concatenate([layer.attentions[axis].mean(0) for _, layer in layers])
    departures = [
        inspection.by_class(layer, axis)[name] - layer.attentions[axis].mean(0)
        for _, layer in layers
        for name in shown
    ]
    joined = np.abs(np.concatenate(departures)) if departures else np.zeros(1)
    reach = max(float(np.percentile(joined, 99)), 1e-6)
    low, high = float(means.min()), float(means.max())
    if high - low < 0.02:  # do not blow up rounding
        low, high = min(low, 0.0), max(high, 1.0)
    all_colours, class_colours = sequential(low, high), diverging(reach)
    draw = _taps if axis == "spatial" else _strips
    colours = all_colours, class_colours
    panels = [
        column(caption(_short(name)), draw(inspection, layer, axis, shown, colours))
        for name, layer in layers
    ]
    counts = ", ".join(f"{name} ({len(inspection.classes[name])})" for name in shown) or "none"
    order = {
        "spatial": "left: all pictures; then one square a class",
        "kernel": "top: all pictures; then one line a class",
    }.get(axis, "top: all pictures, sorted; then one line a class in the same order")
    return column(
        caption(f"Attention along the {axis} axis: {MEANING[axis]}", 17),
        caption(f"{len(inspection.pictures)} pictures; {order}"),
        *_wrapped(
            f"classes that the model found with a score of {inspection.score:g} or more, and in "
            f"how many pictures: {counts}",
            110,
        ),
        row(scale(all_colours, low, high, "mean over all pictures")),
        row(scale(class_colours, -reach, reach, "class minus all pictures")),
        blank(4, 1),
        grid(panels, 3 if axis == "spatial" else 6, gap=18),
    )


def _strips(
    inspection: Inspection,
    layer: LayerRecord,
    axis: str,
    shown: list[str],
    colours: tuple[Colours, Colours],
) -> Image:
    mean = layer.attentions[axis].mean(0)
    order = np.arange(len(mean)) if axis == "kernel" else np.argsort(-mean)
    by_class = inspection.by_class(layer, axis)
    wide = 150
    lines = [row(heat(mean[None, order], colours[0], 14, wide), caption("all", 11), gap=4)]
    for name in shown:
        away = (by_class[name] - mean)[None, order]
        lines.append(row(heat(away, colours[1], 14, wide), caption(name, 11), gap=4))
    return column(*lines, gap=1)


def _taps(
    inspection: Inspection,
    layer: LayerRecord,
    axis: str,
    shown: list[str],
    colours: tuple[Colours, Colours],
) -> Image:
    mean = layer.attentions[axis].mean(0)
    by_class = inspection.by_class(layer, axis)
    wide = layer.kernel_size[-1]
    squares = [
        _tap_square(values.reshape(-1, wide), painted)
        for values, painted in [
            (mean, colours[0]),
            *((by_class[name] - mean, colours[1]) for name in shown),
        ]
    ]
    labels = ["all", *shown]
    cells = [column(s, caption(t, 11), gap=0) for s, t in zip(squares, labels, strict=True)]
    return row(*cells, gap=6)


def _tap_square(values: Numbers, colours: Colours) -> Image:
    return _edged(heat(values, colours, 39, 39))


def _edged(image: Image) -> Image:
    return np.pad(image, ((1, 1), (1, 1), (0, 0)), constant_values=200)


def experts_figure(inspection: Inspection) -> Image:
    """Cosine between the kernels of each two experts of a layer."""
    colours = diverging(1.0)
    panels = []
    mixed = [layer for layer in inspection.layers if layer.experts is not None]
    for name, layer in zip(short_names(mixed), mixed, strict=True):
        assert layer.experts is not None
        matrix = _edged(heat(layer.experts, colours, 84, 84))
        apart = 1 - layer.likeness
        note = f"mean {layer.likeness:.3f}" if apart > 0.01 else f"mean 1 - {apart:.0e}"
        panels.append(column(caption(_short(name, 20), 12), matrix, caption(note, 12), gap=1))
    return column(
        caption("How alike the experts' kernels are: cosine of each two", 17),
        caption(
            "1 where experts are the same (as they begin), 0 where they have nothing in common"
        ),
        scale(colours, -1.0, 1.0),
        blank(4, 1),
        grid(panels, 6),
    )


def pixels_figure(inspection: Inspection, picture: int) -> Image:
    """The kernels at each pixel of one picture, one line a layer (HDFNet: a dilation)."""
    image = read_image(inspection.pictures[picture])
    wide = 330
    photograph = fitted(image, wide)
    height = photograph.shape[0]
    mine = [k for k in inspection.pixel_kernels if k.picture == picture]
    low, high = _limits([k.energy for k in mine])
    far = max(1e-9, max(float(np.percentile(k.departure, 99)) for k in mine))
    maps = (
        ("energy of the kernel", "energy", sequential(low, high), low, high),
        ("share of its energy beside the centre", "beside", sequential(0.0, 1.0), 0.0, 1.0),
        ("departure from the picture's mean kernel", "departure", sequential(0.0, far), 0.0, far),
    )
    head = [_fixed(caption("centre of mass of the taps"), wide)]
    head += [_fixed(caption(title), wide) for title, *_ in maps]
    lines = [row(*head)]
    for k in mine:
        cells = [_arrows(photograph, k)]
        for _, name, colours, *_ in maps:
            cells.append(heat(getattr(k, name), colours, height, wide))
        longest = float(np.percentile(np.hypot(*k.shift), 95))
        lines.append(
            caption(
                f"{k.layer}, dilation {k.dilation}: {k.change:.1%} of the kernels' energy changes "
                f"over the picture; centre of mass up to {longest:.2f} cells off "
                f"(a cell is {k.cell:g} pixels of the input)"
            )
        )
        lines.append(row(*cells))
    bars = [_fixed(caption("arrows: longer = further off; own scale a line", 12), wide)]
    bars += [_fixed(scale(colours, a, b), wide) for _, _, colours, a, b in maps]
    title = caption(f"A kernel at each pixel: {inspection.pictures[picture].name}", 17)
    return column(title, *lines, row(*bars))


def _limits(maps: list[Numbers]) -> tuple[float, float]:
    values = np.concatenate([m.ravel() for m in maps])
    low, high = np.percentile(values, (1, 99))
    return float(low), float(max(high, low + 1e-9))


def _arrows(photograph: Image, kernels: PixelKernels) -> Image:
    """Where the taps pull to, on the picture; the arrows are enlarged to be seen."""
    canvas = np.ascontiguousarray((photograph * 0.45 + 255 * 0.55).astype(np.uint8))
    rows, columns = kernels.energy.shape
    step = canvas.shape[1] / columns
    every = max(1, math.ceil(16 / step))
    longest = max(float(np.percentile(np.hypot(*kernels.shift), 95)), 1e-9)
    for i in range(every // 2, rows, every):
        for j in range(every // 2, columns, every):
            x, y = (j + 0.5) * step, (i + 0.5) * canvas.shape[0] / rows
            dx, dy = kernels.shift[:, i, j] / longest * 0.9 * every * step
            a, b = (round(x), round(y)), (round(x + dx), round(y + dy))
            cv2.circle(canvas, a, 1, ORANGE, -1, cv2.LINE_AA)
            cv2.arrowedLine(canvas, a, b, ORANGE, 1, cv2.LINE_AA, tipLength=0.3)
    return canvas


def _short(name: str, most: int = 30) -> str:
    return name if len(name) <= most else "..." + name[-most + 3 :]


def _wrapped(text: str, most: int) -> list[Image]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) >= most:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return [caption(line) for line in lines]
