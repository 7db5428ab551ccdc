"""DFN: dynamic filter networks (De Brabandere, Jia, Tuytelaars, Van Gool, NIPS 2016)."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from condseg.layers.local_filter import filter_locally
from condseg.layers.parts import full_precision, init_like_conv_, pool, positive, resize_like
from condseg.layers.slot import ConvSlot
from condseg.layers.winograd import Conv3x3

Mode = Literal["joint", "shared", "perchannel"]


def dynamic_local_filter(
    x: Float[Tensor, "b c h w"],
    filters: Float[Tensor, "b f h w"],
    kernel_size: tuple[int, int],
    mode: Mode = "shared",
    dilation: int = 1,
) -> Float[Tensor, "b o h w"]:
    """Filter every position of x with its own filter (dynamic local filtering layer).

    Args:
        x: the map; zeros lie outside of it.
        filters: T = k_h * k_w taps, row-major, per position. ``"shared"``: F = T, one filter for
            all channels; ``"perchannel"``: F = C * T, one per channel; ``"joint"``: F = C * T, and
            the filtered channels are summed.
        kernel_size, dilation: as in :func:`filter_locally`.

    Shape:
        (B, C, H, W) and (B, F, H, W) -> (B, C, H, W), or (B, 1, H, W) for ``"joint"``.

    Raises:
        ValueError: the number of filter channels does not fit the mode.

    Source:
        De Brabandere et al., section 3.2, eq. 2 and 3.
    """
    taps = math.prod(kernel_size)
    groups = 1 if mode == "shared" else x.shape[1]
    if filters.shape[1] != groups * taps:
        raise ValueError(
            f"filters: {filters.shape[1]} channels, mode {mode!r} needs {groups * taps}"
        )
    by_tap = filters.unflatten(1, (groups, taps))  # (B, 1 or C, T, H, W)
    y = filter_locally(x, by_tap, kernel_size, dilation)  # (B, C, H, W)
    return y.sum(1, keepdim=True) if mode == "joint" else y


class FilterGenerator(nn.Sequential):
    """The filter-generating network: an encoder-decoder of convolutions and leaky ReLUs.

    Shape:
        (B, C_guide, H, W) -> (B, F, H, W) filter logits.

    Source:
        De Brabandere et al., section 4; here one level deep, as part of a larger network.
    """

    def __init__(self, guide_channels: int, filters: int, width: int = 32) -> None:
        super().__init__(
            Conv3x3(guide_channels, width),
            nn.LeakyReLU(0.1),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.LeakyReLU(0.1),
            Conv3x3(2 * width, width),
            nn.LeakyReLU(0.1),
            nn.Conv2d(width, filters, 1),
        )

    def forward(self, guide: Tensor) -> Tensor:
        return resize_like(super().forward(guide), guide)  # type: ignore[no-untyped-call]


class DynamicLocalFilter2d(nn.Module):
    r"""Filters every position with its own filter, generated from a second input.

    .. math:: y(i, j) = \sum_{u, v} F_{ij}(u, v)\; x(i + u, j + v), \qquad F = g(\text{guide})

    Args:
        in_channels, guide_channels: of x and of the guide.
        out_channels: if not the number of filtered channels, a 1x1 convolution follows.
        kernel_size: (height, width) of a filter, odd.
        dilation: distance of neighbouring taps in pixels.
        mode: see :func:`dynamic_local_filter`.
        softmax: normalise each filter to a sum of one, as in the paper's video prediction.
        hidden_channels: width of the filter-generating network.

    Shape:
        (B, C, H, W) and guide (B, C_guide, H', W') -> (B, O, H, W); a guide of another size is
        resized.

    Source:
        De Brabandere et al., "Dynamic Filter Networks", section 3.2.
    """

    def __init__(
        self,
        in_channels: int,
        guide_channels: int,
        out_channels: int | None = None,
        kernel_size: int | tuple[int, int] = 5,
        *,
        dilation: int = 1,
        mode: Mode = "shared",
        softmax: bool = True,
        hidden_channels: int = 32,
    ) -> None:
        super().__init__()
        positive(
            in_channels=in_channels, guide_channels=guide_channels, hidden_channels=hidden_channels
        )
        size = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        if any(k < 1 or k % 2 == 0 for k in size):
            raise ValueError(f"kernel_size={kernel_size} must be odd: a filter has a centre")
        if mode not in ("joint", "shared", "perchannel"):
            raise ValueError(f"mode={mode!r} must be 'joint', 'shared' or 'perchannel'")
        self.kernel_size, self.dilation, self.softmax = size, dilation, softmax
        self.mode: Mode = mode
        self.groups = 1 if mode == "shared" else in_channels
        filtered = 1 if mode == "joint" else in_channels
        out = filtered if out_channels is None else out_channels
        taps = math.prod(size)
        self.generator = FilterGenerator(guide_channels, self.groups * taps, hidden_channels)
        self.fuse = nn.Identity() if out == filtered else nn.Conv2d(filtered, out, 1)

    def filters(self, guide: Float[Tensor, "b g h w"]) -> Float[Tensor, "b f h w"]:
        """Filters generated from the guide, at its resolution."""
        logits: Tensor = self.generator(guide)
        if not self.softmax:
            return logits
        by_channel: Tensor = logits.unflatten(1, (self.groups, -1))  # (B, 1 or C, T, H, W)
        return by_channel.softmax(2).flatten(1, 2)

    def forward(
        self, x: Float[Tensor, "b c h w"], guide: Float[Tensor, "b g h2 w2"]
    ) -> Float[Tensor, "b o h w"]:
        y: Tensor = self.fuse(self._filter(x, self.filters(resize_like(guide, x))))
        return y

    def _filter(self, x: Tensor, filters: Tensor) -> Tensor:
        return dynamic_local_filter(x, filters, self.kernel_size, self.mode, self.dilation)


class DynamicConv2d(ConvSlot):
    r"""Convolution whose whole kernel is generated, for each sample, from a second input.

    .. math:: y = W(\text{guide}) * x + b, \qquad
        W = \mathrm{MLP}(\mathrm{pool}(\text{guide}))

    Args:
        conv, conv_options: ``nn.Conv2d``'s arguments, see :class:`ConvSlot`.
        guide_channels: channels of the second input; in_channels by default.
        hidden_channels: width of the filter-generating network's hidden layer.

    Shape:
        (B, C, H, W) -> (B, O, H_out, W_out), as ``nn.Conv2d``; the guide (B, C_guide, ...), a map
        of any size or a vector, is x by default.

    Source:
        De Brabandere et al., "Dynamic Filter Networks", section 3.1 (dynamic convolution) and the
        steerable filters of section 4.1, whose generator is a small fully connected network.
    """

    def __init__(
        self,
        *conv: Any,
        guide_channels: int | None = None,
        hidden_channels: int = 16,
        **conv_options: Any,
    ) -> None:
        super().__init__(*conv, **conv_options)
        self.guide_channels = self.in_channels if guide_channels is None else guide_channels
        positive(guide_channels=self.guide_channels, hidden_channels=hidden_channels)
        self.hidden = nn.Linear(self.guide_channels, hidden_channels)
        self.generate = nn.Linear(hidden_channels, math.prod(self.kernel_shape))
        self.bias = nn.Parameter(torch.empty(1, self.out_channels)) if self.has_bias else None
        base = torch.empty(1, *self.kernel_shape)
        init_like_conv_(base, None if self.bias is None else self.bias.data)
        # The kernel starts as nn.Conv2d's random one plus an offset that depends on the guide.
        self.generate.bias.data.copy_(base.flatten())
        self.generate.weight.data.mul_(base.std(correction=0))

    def kernels(self, guide: Float[Tensor, "b g *s"]) -> Float[Tensor, "b o c_per_group *k"]:
        """Kernels generated from the guide, one per sample."""
        with full_precision(guide):
            pooled = pool(guide, self.hidden.weight)
            generated: Tensor = self.generate(F.relu(self.hidden(pooled)))
            return generated.view(-1, *self.kernel_shape)

    def kernel_and_bias(
        self, x: Float[Tensor, "b c *s"], guide: Float[Tensor, "b g *s2"] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        kernel = self.kernels(x if guide is None else guide)
        return kernel, None if self.bias is None else self.bias.expand(x.shape[0], -1)

    def forward(
        self, x: Float[Tensor, "b c *s"], guide: Float[Tensor, "b g *s2"] | None = None
    ) -> Float[Tensor, "b o *s_out"]:
        return self._convolve(x, *self.kernel_and_bias(x, guide))

    def _start_from_(self, weight: Tensor, spread: float) -> None:
        """The static kernel becomes the generator's last bias."""
        nn.init.zeros_(self.generate.weight)
        self.generate.bias.copy_(weight.flatten())


class DynamicConv1d(DynamicConv2d):
    dims = 1


class DynamicConv3d(DynamicConv2d):
    dims = 3
