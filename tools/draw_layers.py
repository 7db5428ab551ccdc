"""Draws the images of docs/layers: what each layer does, computed by the layers themselves.

python tools/draw_layers.py docs/layers

Above 300 lines: one function per layer, with shared panels.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from numpy.typing import NDArray
from studies.charts import BLUE, DIVERGING, ORANGE, diverging, new_figure, save, show, split
from torch import Tensor, nn

from condseg import layers
from condseg.data.dataset import CocoDataset
from condseg.data.files import TABLETOP
from condseg.data.images import read_image
from condseg.data.transforms import resize_transform
from condseg.layers.dfn import dynamic_local_filter
from condseg.models.mask.head import DynamicMaskHead
from condseg.structures import MaskQueries

IMAGES = [TABLETOP / "val" / name for name in ("000000.jpg", "000005.jpg")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("output", help="folder of the PNGs")
    folder = Path(parser.parse_args().output)
    drawings = (condconv, dyconv, dynet, odconv, dfn_steered, dfn_local, dmnet, hdfnet, mask_head)
    for draw in drawings:
        torch.manual_seed(0)
        print(save(draw(), folder / f"{draw.__name__}.png"))


def read(path: Path, width: int = 160) -> NDArray[np.uint8]:
    """(H, W, 3) at that width."""
    image = read_image(path)
    size = (width, round(image.shape[0] * width / image.shape[1]))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))


def colours(path: Path, width: int = 160) -> Tensor:
    """(1, 3, H, W), 0..1."""
    return torch.from_numpy(read(path, width)).permute(2, 0, 1)[None] / 255


def normalised(path: Path) -> Tensor:
    """(1, 3, H, W) about zero, so that attentions differ between images as in a network."""
    return (colours(path) - 0.45) / 0.1


def oriented(count: int, size: int = 7) -> Tensor:
    """(count, 3, size, size) edge filters of evenly spaced orientations."""
    at = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(at, at, indexing="ij")
    angles = torch.arange(count) * math.pi / count
    along = angles.cos()[:, None, None] * x + angles.sin()[:, None, None] * y
    kernels = along * torch.exp(-2.5 * (x * x + y * y))
    return (kernels / kernels.abs().sum((1, 2), keepdim=True))[:, None].expand(-1, 3, -1, -1)


def response(axes: Any, values: Tensor, title: str = "") -> None:
    """An output map; the few largest values are cut off."""
    diverging(axes, values, title, limit=float(values.abs().quantile(0.995)))


def unit(axes: Any, values: Tensor, title: str = "") -> Any:
    """A map of weights from 0 (dark) to 1 (yellow)."""
    return show(axes, np.atleast_2d(values.numpy()), title, vmin=0, vmax=1, aspect="auto")


def bars(axes: Any, values: Tensor, title: str = "") -> None:
    """Weights from 0 to 1 as bars."""
    axes.bar(range(len(values)), values.numpy(), color=BLUE)
    axes.set(ylim=(0, 1), xticks=[], yticks=[0, 1], title=title)


def rows_of(grid: Any) -> Iterator[tuple[Any, Path]]:
    """Each image, drawn at the left of its row, with the other axes of the row."""
    for (first, *others), path in zip(grid, IMAGES, strict=True):
        show(first, read(path))
        yield others, path


def with_experts(experts: Tensor) -> tuple[Figure, Any]:
    """A figure with the experts' kernels at the top, and the part below them."""
    figure = new_figure(6.8, 3.6)
    top, below = split(figure, 2, 1, height_ratios=[1, 2.6])
    for axes, weight in zip(top.subplots(1, len(experts)), experts, strict=True):
        diverging(axes, weight[0, 0])
    top.supylabel("experts", fontsize=9)
    return figure, below


def fit(parameters: Iterable[Tensor], lr: float, loss: Callable[[], Tensor]) -> None:
    """400 steps of Adam."""
    optimizer = torch.optim.Adam(parameters, lr=lr)
    for _ in range(400):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


@torch.no_grad()
def condconv() -> Figure:
    layer = layers.CondConv2d(
        3, 1, 7, padding=3, bias=False, padding_mode="replicate", num_experts=8
    ).eval()
    layer.weight.copy_(oriented(8)[:, None])
    layer.routing_fn.weight.mul_(5)
    figure, below = with_experts(layer.weight)
    grid = below.subplots(2, 4, width_ratios=[1.5, 2, 1, 1.5])
    for (weights, kernel, output), path in rows_of(grid):
        x = normalised(path)
        routing = layer.routing_weights(x)[0]
        bars(weights, routing)
        diverging(kernel, torch.einsum("e,ehw->hw", routing, layer.weight[:, 0, 0]))
        response(output, layer(x)[0, 0])
    titles = ("image", "routing weights", "its kernel", "output")
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title)
    return figure


@torch.no_grad()
def dyconv() -> Figure:
    layer = layers.DyConv2d(3, 1, 7, padding=3, bias=False, num_experts=4).eval()
    layer.weight.copy_(oriented(4)[:, None])
    layer.attention.fc2.weight.mul_(20)
    figure, below = with_experts(layer.weight)
    temperatures = (30.0, 5.0, 1.0)
    grid = below.subplots(2, 7, width_ratios=[1.5, *(1, 0.8) * 3])
    for row, path in rows_of(grid):
        for k, temperature in enumerate(temperatures):
            weights = layer.attention(normalised(path), torch.tensor(temperature))[0]
            bars(row[2 * k], weights)
            diverging(row[2 * k + 1], torch.einsum("e,ehw->hw", weights, layer.weight[:, 0, 0]))
    for axes, temperature in zip(grid[0, 1::2], temperatures, strict=True):
        axes.set_title(f"temperature {temperature:g}")
    grid[0, 0].set_title("image")
    return figure


@torch.no_grad()
def dynet() -> Figure:
    layer = layers.DyNetConv2d(3, 24, 3, padding=1, num_experts=4).eval()
    layer.coefficient_fn.weight.mul_(4)
    figure = new_figure(6.8, 2.9)
    grid = figure.subplots(2, 2, width_ratios=[1, 3])
    for (left, right), path in zip(grid, IMAGES, strict=True):
        show(left, read(path))
        image = unit(right, layer.coefficients(normalised(path))[0])
    grid[0, 1].set_title("coefficients: 4 experts (rows) x 24 output channels (columns)")
    figure.colorbar(image, ax=grid[:, 1])
    return figure


@torch.no_grad()
def odconv() -> Figure:
    layer = layers.ODConv2d(3, 16, 7, padding=3, bias=False, num_experts=4).eval()
    layer.weight.copy_(oriented(4)[:, None].expand(-1, 16, -1, -1, -1))
    heads = layer.attention
    for head in (heads.channel_fc, heads.filter_fc, heads.spatial_fc, heads.kernel_fc):
        assert head is not None
        head.weight.mul_(0.7)
    figure = new_figure(8.4, 3.6)
    for part, path in zip(split(figure, 2, 1), IMAGES, strict=True):
        a = layer.attention(normalised(path), layer.temperature)
        assert a.kernel is not None
        assert a.filter is not None
        assert a.spatial is not None
        panels = part.subplot_mosaic("pesrgb;pfsrgb;pcsrgb", width_ratios=[1.6, 2.2, 1.3, 1, 1, 1])
        show(panels["p"], read(path))
        unit(panels["e"], a.kernel[0], "experts (4)")
        unit(panels["f"], a.filter[0], "output channels (16)")
        unit(panels["c"], a.channel[0], "input channels (3)")
        image = unit(panels["s"], a.spatial[0].view(7, 7), "positions (7 x 7)")
        panels["s"].set_aspect("equal")
        mixed = torch.einsum("e,eochw->ochw", a.kernel[0], layer.weight)
        mixed = mixed * a.channel[0][:, None, None] * a.spatial[0].view(7, 7)
        mixed = mixed * a.filter[0][:, None, None, None]
        strongest = mixed[int(a.filter[0].argmax())]
        for name, kernel in zip("rgb", strongest, strict=True):
            diverging(panels[name], kernel, name.upper(), limit=float(strongest.abs().max()))
        part.colorbar(image, ax=panels["s"], ticks=[0, 1])
    figure.supxlabel("R, G, B: kernel of the strongest output channel", fontsize=9)
    return figure


def dfn_steered() -> Figure:
    """A layer that has learned the derivative in the direction of an angle."""
    layer = layers.DynamicConv2d(
        1, 1, 7, padding=3, bias=False, padding_mode="replicate", guide_channels=2
    )
    basis = oriented(2)[:, :1]  # along x, along y

    def loss() -> Tensor:
        x, angle = torch.randn(16, 1, 15, 15), torch.rand(16) * 2 * math.pi
        guide = torch.stack((angle.cos(), angle.sin()), 1)
        maps = F.conv2d(F.pad(x, (3, 3, 3, 3), mode="replicate"), basis)
        return F.mse_loss(layer(x, guide), (maps * guide[..., None, None]).sum(1, keepdim=True))

    fit(layer.parameters(), 0.01, loss)
    layer.eval()
    grey = colours(IMAGES[0]).mean(1, keepdim=True)
    figure = new_figure(11.2, 2.2)
    grid = figure.subplots(2, 7, width_ratios=[1.2, *[1] * 6])
    show(grid[1, 0], read(IMAGES[0]))
    grid[0, 0].axis("off")
    for k, degrees in enumerate(range(0, 360, 60), start=1):
        angle = torch.tensor(math.radians(degrees))
        guide = torch.stack((angle.cos(), angle.sin()))[None]
        with torch.no_grad():
            diverging(grid[0, k], layer.kernels(guide)[0, 0, 0], f"{degrees} degrees")
            response(grid[1, k], layer(grey, guide)[0, 0])
    return figure


def dfn_local() -> Figure:
    reach, x = 8, colours(IMAGES[0], 128)
    height, width = x.shape[-2:]
    sides = [torch.arange(side) - side / 2 for side in (height, width)]
    y, x0 = torch.meshgrid(*sides, indexing="ij")
    cos, sin = math.cos(math.radians(7)), math.sin(math.radians(7))
    shifts = (y * cos - x0 * sin - y, y * sin + x0 * cos - x0)
    dy, dx = (shift.clamp(-reach, reach) for shift in shifts)
    side = 2 * reach + 1
    taps = torch.arange(side) - reach
    near = [(1 - (taps[:, None, None] - d).abs()).clamp_min(0) for d in (dy, dx)]
    filters = (near[0][:, None] * near[1][None]).flatten(0, 1)[None]  # (1, side * side, H, W)
    y = dynamic_local_filter(x, filters, (side, side))[0]
    figure = new_figure(6.6, 2.2)
    left, middle, right = split(figure, 1, 3)
    show(left.subplots(), read(IMAGES[0], 128), "image")
    show(right.subplots(), y.permute(1, 2, 0).numpy(), "filtered")
    grid = middle.subplots(3, 3)
    for axes, (i, j) in zip(grid.flat, np.ndindex(3, 3), strict=True):
        row, column = (int((0.2 + 0.3 * k) * size) for k, size in ((i, height), (j, width)))
        diverging(axes, filters[0, :, row, column].view(side, side), limit=1.0)
    middle.suptitle("filters at nine positions", fontsize=9)
    return figure


@torch.no_grad()
def dmnet() -> Figure:
    sizes = (1, 3, 5, 7)
    branches = [layers.DynamicContextFilter2d(3, 3, k, norm="none").eval() for k in sizes]
    for branch in branches:
        nn.init.dirac_(branch.filter_gen_conv.weight)
        nn.init.zeros_(branch.filter_gen_conv.bias)  # type: ignore[arg-type]
    figure = new_figure(6.6, 3.0)
    grid = figure.subplots(2, 5, width_ratios=[1.5, 1, 1, 1, 1])
    for row, path in rows_of(grid):
        for axes, branch, k in zip(row, branches, sizes, strict=True):
            show(axes, branch.filters(colours(path))[0].permute(1, 2, 0).numpy(), f"{k} x {k}")
    figure.supxlabel("kernels, their red, green and blue channels as colours", fontsize=9)
    return figure


@torch.no_grad()
def hdfnet() -> Figure:
    image = read(IMAGES[0], 44)
    guide = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    figure = new_figure(9.4, 2.8)
    for axes, dilation in zip(figure.subplots(1, 3), (1, 3, 5), strict=True):
        branch = layers.DynamicDilatedFilter2d(1, 3, 1, dilation=dilation).train()
        kernels = branch.kernels(guide)[0, 0]
        pixels = ((9, 22), (23, 12), (22, 33))
        limit = max(float(kernels[:, y, x].abs().max()) for y, x in pixels)
        show(axes, image, f"dilation {dilation}", alpha=0.55, interpolation="bicubic")
        for y, x in pixels:
            taps = np.arange(9)
            rows, columns = y + dilation * (taps // 3 - 1), x + dilation * (taps % 3 - 1)
            edges = [ORANGE if tap == 4 else "#3C3C3C" for tap in taps]
            axes.scatter(columns, rows, 36, kernels[:, y, x].numpy(), marker="s", cmap=DIVERGING,
                         vmin=-limit, vmax=limit, edgecolors=edges, linewidths=0.8)  # fmt: skip
    note = "three pixels and the nine taps of each, negative blue, positive orange (untrained)"
    figure.supxlabel(note, fontsize=9)
    return figure


def mask_head() -> Figure:
    dataset = CocoDataset(
        TABLETOP / "instances_val.json", TABLETOP / "val", resize_transform(72, 96)
    )
    sample = dataset[0]
    chosen = sample.targets.masks.flatten(1).sum(1).argsort(descending=True)[:3]
    targets, boxes = sample.targets.masks[chosen].float(), sample.targets.boxes[chosen]
    centred = sample.image[None] / 255 - 0.5
    blurred = F.avg_pool2d(centred, 9, 1, 4)
    grey = centred.mean(1, keepdim=True)
    rough = F.avg_pool2d((grey - blurred.mean(1, keepdim=True)).square(), 5, 1, 2).sqrt()
    features = torch.cat((centred, blurred, grey, 4 * rough), 1) * 3  # (1, 8, H, W)
    head = DynamicMaskHead(out_stride=8)
    params = (0.3 * torch.randn(3, head.num_params)).requires_grad_()
    points = (boxes[:, :2] + boxes[:, 2:]) / 2 * 8
    image_index = torch.zeros(3, dtype=torch.int64)
    queries = MaskQueries(params, points, torch.full((3,), 128.0), image_index)
    bce = F.binary_cross_entropy_with_logits
    fit([params], 0.05, lambda: bce(head(features, queries), targets))
    params = params.detach()
    figure = new_figure(9.4, 3.0)
    grid = figure.subplots(2, 4, height_ratios=[2, 3], width_ratios=[1.3, 1, 1, 1])
    grid[0, 0].axis("off")
    show(grid[1, 0], sample.image.permute(1, 2, 0).numpy(), "features from")
    masks = head(features, queries).detach().sigmoid()
    for k in range(3):
        numbers = F.pad(params[k], (0, 1)).view(10, 17)
        diverging(grid[0, k + 1], numbers, "169 numbers", limit=float(params.abs().quantile(0.99)))
        show(grid[1, k + 1], masks[k].numpy(), "their mask", vmin=0, vmax=1)
    return figure


if __name__ == "__main__":
    main()
