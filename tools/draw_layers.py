"""Draws the pictures of docs/layers: what each layer does, from the layers themselves.

python tools/draw_layers.py docs/layers
"""

import argparse
import math
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from studies.panels import (
    ORANGE,
    Image,
    bars,
    blank,
    caption,
    column,
    diverging,
    fitted,
    heat,
    row,
    save,
    sequential,
)
from torch import Tensor, nn

from condseg import layers
from condseg.data.dataset import CocoDataset
from condseg.data.files import TABLETOP
from condseg.data.images import read_image
from condseg.data.transforms import resize_transform
from condseg.layers.dfn import dynamic_local_filter
from condseg.models.mask.head import DynamicMaskHead
from condseg.structures import MaskQueries

PICTURES = [TABLETOP / "val" / name for name in ("000000.jpg", "000005.jpg")]
WIDE = 150


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("output", help="folder of the PNGs")
    folder = Path(parser.parse_args().output)
    drawings = {
        "condconv": condconv,
        "dyconv": dyconv,
        "dynet": dynet,
        "odconv": odconv,
        "dfn_steered": dfn_steered,
        "dfn_local": dfn_local,
        "dmnet": dmnet,
        "hdfnet": hdfnet,
        "mask_head": mask_head,
    }
    for name, draw in drawings.items():
        torch.manual_seed(0)
        print(save(draw(), folder / f"{name}.png"))


def colour_input(path: Path, width: int = 160) -> Tensor:
    """(1, 3, H, W), 0..1."""
    pixels = fitted(read_image(path), width)
    return torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255


def normalised(path: Path) -> Tensor:
    """The same about zero, so that attentions differ between pictures as in a network."""
    return (colour_input(path) - 0.45) / 0.1


def oriented(number: int, size: int = 7) -> Tensor:
    """(number, 3, size, size) edge filters, one an orientation."""
    at = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(at, at, indexing="ij")
    angles = torch.arange(number) * math.pi / number
    along = angles.cos()[:, None, None] * x + angles.sin()[:, None, None] * y
    kernels = along * torch.exp(-2.5 * (x * x + y * y))
    return (kernels / kernels.abs().sum((1, 2), keepdim=True))[:, None].expand(-1, 3, -1, -1)


def square(values: Tensor, reach: float | None = None, side: int = 56) -> Image:
    """A kernel, blue below zero and orange above."""
    array = values.detach().double().numpy()
    image = heat(array, diverging(reach or float(np.abs(array).max())), side, side)
    return np.pad(image, ((1, 1), (1, 1), (0, 0)), constant_values=190)


def strip(values: Tensor, low: float, high: float, width: int = 220, height: int = 16) -> Image:
    return heat(
        np.atleast_2d(values.detach().double().numpy()), sequential(low, high), height, width
    )


def response(values: Tensor) -> Image:
    array = values.detach().double().numpy()
    height = round(WIDE * array.shape[0] / array.shape[1])
    array = array / np.percentile(np.abs(array), 99.5)
    # Steps of a twelfth are not seen, and make the file small.
    return heat(np.round(12 * array) / 12, diverging(1.0), height, WIDE)


def experts_line(weight: Tensor) -> Image:
    return row(caption("experts"), *(square(w[0, 0]) for w in weight))


@torch.no_grad()
def condconv() -> Image:
    layer = layers.CondConv2d(
        3, 1, 7, padding=3, bias=False, padding_mode="replicate", num_experts=8
    ).eval()
    layer.weight.copy_(oriented(8)[:, None])
    layer.routing_fn.weight.mul_(5)
    widths = (WIDE, 200, 90, WIDE)
    titles = ("picture", "routing weights (0 to 1)", "its kernel", "what it gives")
    lines = [experts_line(layer.weight), blank(4, 1)]
    lines.append(row(*(_to(caption(t), w) for t, w in zip(titles, widths, strict=True)), gap=16))
    for path in PICTURES:
        x = normalised(path)
        routing = layer.routing_weights(x)[0]
        kernel = torch.einsum("e,ehw->hw", routing, layer.weight[:, 0, 0])
        cells = (
            fitted(read_image(path), WIDE),
            bars(routing.tolist(), 1.0, 80, 200),
            square(kernel, side=78),
            response(layer(x)[0, 0]),
        )
        lines.append(row(*(_to(c, w) for c, w in zip(cells, widths, strict=True)), gap=16))
    return column(*lines, gap=8)


def _to(image: Image, width: int) -> Image:
    return row(image, blank(1, max(1, width - image.shape[1])), gap=0)[:, : max(width, 1)]


@torch.no_grad()
def dyconv() -> Image:
    layer = layers.DyConv2d(3, 1, 7, padding=3, bias=False, num_experts=4).eval()
    layer.weight.copy_(oriented(4)[:, None])
    layer.attention.fc2.weight.mul_(20)
    lines = [experts_line(layer.weight), blank(4, 1)]
    widths = (WIDE, 120, 120, 120)
    titles = ("picture", "temperature 30", "5", "1")
    lines.append(row(*(_to(caption(t), w) for t, w in zip(titles, widths, strict=True)), gap=16))
    for path in PICTURES:
        x = normalised(path)
        cells = [fitted(read_image(path), WIDE)]
        for temperature in (30.0, 5.0, 1.0):
            shares = layer.attention(x, torch.tensor(temperature))[0]
            kernel = torch.einsum("e,ehw->hw", shares, layer.weight[:, 0, 0])
            cells.append(column(bars(shares.tolist(), 1.0, 50, 110), square(kernel)))
        lines.append(row(*(_to(c, w) for c, w in zip(cells, widths, strict=True)), gap=16))
    return column(*lines, gap=8)


@torch.no_grad()
def dynet() -> Image:
    layer = layers.DyNetConv2d(3, 24, 3, padding=1, num_experts=4).eval()
    layer.coefficient_fn.weight.mul_(4)
    lines = [caption("coefficients: 4 experts (rows) x 24 output channels (columns)")]
    for path in PICTURES:
        c = layer.coefficients(normalised(path))[0]
        lines.append(row(fitted(read_image(path), WIDE), strip(c, 0, 1, 480, 112), gap=16))
    key = row(caption("0"), strip(torch.linspace(0, 1, 100), 0, 1, 120, 14), caption("1"))
    return column(*lines, key, gap=8)


@torch.no_grad()
def odconv() -> Image:
    layer = layers.ODConv2d(3, 16, 7, padding=3, bias=False, num_experts=4).eval()
    layer.weight.copy_(oriented(4)[:, None].expand(-1, 16, -1, -1, -1))
    heads = layer.attention
    for head in (heads.channel_fc, heads.filter_fc, heads.spatial_fc, heads.kernel_fc):
        assert head is not None
        head.weight.mul_(0.7)
    lines = []
    for path in PICTURES:
        a = layer.attention(normalised(path), layer.temperature)
        assert a.kernel is not None
        assert a.filter is not None
        assert a.spatial is not None
        names = ("experts", "output channels", "input channels")
        values = (a.kernel[0], a.filter[0], a.channel[0])
        strips = [
            column(caption(f"{n} ({len(v)})"), strip(v, 0, 1), gap=1)
            for n, v in zip(names, values, strict=True)
        ]
        taps = strip(a.spatial[0].view(7, 7), 0, 1, 90, 90)
        mixed = torch.einsum("e,eochw->ochw", a.kernel[0], layer.weight)
        mixed = mixed * a.channel[0][:, None, None] * a.spatial[0].view(7, 7)
        mixed = mixed * a.filter[0][:, None, None, None]
        first = mixed[int(a.filter[0].argmax())]
        kernels = row(*(square(k, float(first.abs().max()), 70) for k in first))
        right = column(caption("positions (7 x 7)"), taps)
        result = column(caption("strongest output channel's kernel (R, G, B)"), kernels)
        photograph = fitted(read_image(path), WIDE)
        lines.append(row(photograph, column(*strips, gap=6), right, result, gap=18))
    key = row(caption("0"), strip(torch.linspace(0, 1, 100), 0, 1, 120, 14), caption("1"))
    return column(*lines, key, gap=14)


def steer(steps: int = 400) -> layers.DynamicConv2d:
    """A layer that learns the derivative in the direction of an angle."""
    layer = layers.DynamicConv2d(
        1, 1, 7, padding=3, bias=False, padding_mode="replicate", guide_channels=2
    )
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    basis = oriented(2)[:, :1]  # along x, along y
    for _ in range(steps):
        x, angle = torch.randn(16, 1, 15, 15), torch.rand(16) * 2 * math.pi
        guide = torch.stack((angle.cos(), angle.sin()), 1)
        maps = F.conv2d(F.pad(x, (3, 3, 3, 3), mode="replicate"), basis)
        target = (maps * guide[..., None, None]).sum(1, keepdim=True)
        loss = F.mse_loss(layer(x, guide), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return layer.eval()


def dfn_steered() -> Image:
    layer = steer()
    picture = colour_input(PICTURES[0]).mean(1, keepdim=True)
    cells = []
    for degrees in range(0, 360, 60):
        angle = torch.tensor(math.radians(degrees))
        guide = torch.stack((angle.cos(), angle.sin()))[None]
        with torch.no_grad():
            kernel, y = layer.kernels(guide)[0, 0, 0], layer(picture, guide)[0, 0]
        cells.append(column(caption(f"{degrees} degrees"), square(kernel), response(y)))
    return row(fitted(read_image(PICTURES[0]), WIDE), *cells[:3], *cells[3:])


def dfn_local() -> Image:
    size, reach = 128, 8
    pixels = fitted(read_image(PICTURES[0]), size)
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    height, width = x.shape[-2:]
    at = torch.meshgrid(
        torch.arange(height) - height / 2, torch.arange(width) - width / 2, indexing="ij"
    )
    angle = math.radians(7)
    y0 = at[0] * math.cos(angle) - at[1] * math.sin(angle)
    x0 = at[0] * math.sin(angle) + at[1] * math.cos(angle)
    dy, dx = (y0 - at[0]).clamp(-reach, reach), (x0 - at[1]).clamp(-reach, reach)
    side = 2 * reach + 1
    rows = torch.arange(side) - reach
    near = [(1 - (rows[:, None, None] - d).abs()).clamp_min(0) for d in (dy, dx)]
    filters = (near[0][:, None] * near[1][None]).flatten(0, 1)[None]
    y = dynamic_local_filter(x, filters, (side, side))[0]
    turned = (y.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    places = [(i, j) for i in (0.2, 0.5, 0.8) for j in (0.2, 0.5, 0.8)]
    shown = [
        square(filters[0, :, int(i * height), int(j * width)].view(side, side), 1.0, 60)
        for i, j in places
    ]
    grid = column(*(row(*shown[k : k + 3], gap=4) for k in (0, 3, 6)), gap=4)
    return row(
        column(caption("picture"), fitted(pixels, 200)),
        column(caption("filters at nine places"), grid),
        column(caption("filtered"), fitted(turned, 200)),
        gap=18,
    )


@torch.no_grad()
def dmnet() -> Image:
    lines = []
    branches = [layers.DynamicContextFilter2d(3, 3, k, norm="none").eval() for k in (1, 3, 5, 7)]
    for branch in branches:
        nn.init.dirac_(branch.filter_gen_conv.weight)
        nn.init.zeros_(branch.filter_gen_conv.bias)  # type: ignore[arg-type]
    for path in PICTURES:
        x = colour_input(path)
        cells = [fitted(read_image(path), WIDE)]
        for branch in branches:
            kernel = branch.filters(x)[0].permute(1, 2, 0)
            pixels = (kernel * 255).round().to(torch.uint8).numpy()
            large = cv2.resize(pixels, (105, 105), interpolation=cv2.INTER_NEAREST)
            k = branch.filter_size
            cells.append(column(caption(f"{k} x {k}"), large))
        lines.append(row(*cells, gap=16))
    note = caption("kernels, their red, green and blue channels as colours (no mixing of channels)")
    return column(note, *lines, gap=12)


@torch.no_grad()
def hdfnet() -> Image:
    pixels, scale = fitted(read_image(PICTURES[0]), 44), 12
    guide = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    canvas = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    canvas = (canvas * 0.55 + 255 * 0.45).astype(np.uint8)
    cells = []
    for dilation in (1, 3, 5):
        branch = layers.DynamicDilatedFilter2d(1, 3, 1, dilation=dilation).train()
        kernels = branch.kernels(guide)[0, 0]
        places = ((9, 22), (23, 12), (22, 33))
        reach = max(float(kernels[:, y, x].abs().max()) for y, x in places)
        drawn = canvas.copy()
        for cy, cx in places:
            for tap in range(9):
                i, j = cy + dilation * (tap // 3 - 1), cx + dilation * (tap % 3 - 1)
                value = np.array([[float(kernels[tap, cy, cx])]])
                fill = tuple(int(v) for v in diverging(reach)(value)[0, 0])
                a, b = (j * scale, i * scale), ((j + 1) * scale - 1, (i + 1) * scale - 1)
                cv2.rectangle(drawn, a, b, fill, -1)
                cv2.rectangle(drawn, a, b, ORANGE if tap == 4 else (60, 60, 60), 1)
        cells.append(column(caption(f"dilation {dilation}"), fitted(drawn, 300)))
    note = caption(
        "three pixels and the nine taps of each; blue takes away, orange adds (an untrained layer)"
    )
    return column(note, row(*cells))


def mask_head(steps: int = 400) -> Image:
    dataset = CocoDataset(
        TABLETOP / "instances_val.json", TABLETOP / "val", resize_transform(72, 96)
    )
    sample = dataset[0]
    chosen = sample.targets.masks.flatten(1).sum(1).argsort(descending=True)[:3]
    targets, boxes = sample.targets.masks[chosen].float(), sample.targets.boxes[chosen]
    colours = sample.image[None] / 255 - 0.5
    blurred = F.avg_pool2d(colours, 9, 1, 4)
    grey = colours.mean(1, keepdim=True)
    rough = F.avg_pool2d((grey - blurred.mean(1, keepdim=True)).square(), 5, 1, 2).sqrt()
    features = torch.cat((colours, blurred, grey, 4 * rough), 1) * 3
    head = DynamicMaskHead(out_stride=8)
    params = (0.3 * torch.randn(3, head.num_params)).requires_grad_()
    points = (boxes[:, :2] + boxes[:, 2:]) / 2 * 8
    picture = torch.zeros(3, dtype=torch.int64)
    optimizer = torch.optim.Adam([params], lr=0.05)
    for _ in range(steps):
        queries = MaskQueries(params, points, torch.full((3,), 128.0), picture, picture)
        loss = F.binary_cross_entropy_with_logits(head(features, queries), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    queries = MaskQueries(params, points, torch.full((3,), 128.0), picture, picture)
    masks = head(features, queries).sigmoid()
    photograph = fitted(sample.image.permute(1, 2, 0).contiguous().numpy(), 260)
    cells = [column(caption("features from"), photograph)]
    reach = float(params.detach().abs().quantile(0.99))
    for p in range(3):
        numbers = F.pad(params[p].detach(), (0, 1)).view(10, 17).double().numpy()
        code = heat(numbers, diverging(reach), 100, 170)
        mask = strip(masks[p].detach(), 0, 1, 200, round(200 * masks.shape[1] / masks.shape[2]))
        cells.append(column(caption("169 numbers"), code, caption("their mask"), mask))
    return row(*cells, gap=16)


if __name__ == "__main__":
    main()
