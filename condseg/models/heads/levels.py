"""What dense heads share: layers on all levels, and a convolution at chosen locations only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from condseg.layers.parts import full_precision
from condseg.layers.winograd import Conv3x3


def conv_tower(channels: int, num_convs: int) -> nn.Sequential:
    """``num_convs`` times a 3x3 convolution, a group norm of 32 groups and ReLU."""
    layers: list[nn.Module] = []
    for _ in range(num_convs):
        layers += Conv3x3(channels, channels), nn.GroupNorm(32, channels), nn.ReLU(inplace=True)
    return nn.Sequential(*layers)


def run_levels(layers: Iterable[nn.Module], maps: Sequence[Tensor]) -> list[Tensor]:
    """Apply layers shared by the levels; a :class:`Conv3x3` is applied to all levels at once."""
    maps = list(maps)
    for layer in layers:
        at_once = isinstance(layer, Conv3x3)
        maps = layer(maps) if at_once else [layer(x) for x in maps]
    return maps


def conv3x3_at(
    conv: Conv3x3,
    maps: Sequence[Float[Tensor, "b c _h _w"]],
    image_index: Int64[Tensor, " p"],
    location_index: Int64[Tensor, " p"],
) -> Float[Tensor, "p g"]:
    """The output of a 3x3 convolution shared by all levels, at P chosen locations only."""
    # The 3x3 windows around the locations are gathered and multiplied as one matrix.
    batch, channels = maps[0].shape[:2]
    rows, windows, count = [], [], 0
    for x in maps:
        h, w = x.shape[-2] + 2, x.shape[-1] + 2
        rows.append(F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1).reshape(batch, -1, channels))
        cells = torch.arange(count, count + h * w, device=x.device).view(h, w)
        around = [cells[i : h - 2 + i, j : w - 2 + j] for i in range(3) for j in range(3)]
        windows.append(torch.stack(around, dim=2).flatten(0, 1))
        count += h * w
    # Looked up per location, so that no shape depends on the locations.
    window = torch.cat(windows)[location_index]  # (P, 9) rows of the maps of an image
    index = (image_index[:, None] * count + window).flatten()  # (9 P,)
    patches = torch.cat(rows, dim=1).flatten(0, 1).index_select(0, index)  # (9 P, C)
    weight = conv.weight.permute(0, 2, 3, 1).flatten(1)  # (G, 9 C)
    with full_precision(patches):
        return F.linear(patches.view(-1, 9 * channels), weight, conv.bias)
