"""HDFNet: filters guided by a second input.

Source:
    Pang et al., "Hierarchical Dynamic Filtering Network for RGB-D Salient Object Detection" (ECCV
    2020).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from condseg.layers.local_filter import filter_locally
from condseg.layers.parts import Norm, check_count, check_sizes, map_norm, positive, resize_like
from condseg.layers.winograd import Conv3x3


class ConvNormReLU(nn.Module):
    """3x3 convolution without bias -> norm -> ReLU."""

    def __init__(self, in_channels: int, out_channels: int, norm: Norm = "batch") -> None:
        super().__init__()
        conv = Conv3x3(in_channels, out_channels, bias=False)
        self.basicconv = nn.Sequential(conv, map_norm(norm, out_channels), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.basicconv(x)
        return y


class DenseLayer2d(nn.Module):
    """Densely connected 3x3 convolutions on a narrow copy of the map, then joined with the map.

    Args:
        in_channels, out_channels: of the map and of the result.
        reduction: the steps are out_channels // reduction wide.
        steps: number of dense steps; each reads all earlier ones.
        norm: batch as published, layer, or none.

    Shape:
        (B, C, H, W) -> (B, O, H, W).

    Source:
        Pang et al., section 3.2, as in the published code: only the last step is joined with the
        map.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        reduction: int = 4,
        steps: int = 4,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        positive(reduction=reduction)
        check_count(steps=steps)
        width = max(out_channels // reduction, 1)
        self.down = nn.Conv2d(in_channels, width, 1)
        self.denseblock = nn.ModuleList(
            ConvNormReLU(width * i, width, norm) for i in range(1, steps + 1)
        )
        self.fuse = ConvNormReLU(in_channels + width, out_channels, norm)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o h w"]:
        down = self.down(x)
        steps: list[Tensor] = []
        for step in self.denseblock:
            steps.append(step(torch.cat([*steps, down], 1)))
        y: Tensor = self.fuse(torch.cat([x, steps[-1]], 1))
        return y


class DenseTransport2d(nn.Module):
    """Dense transport layer: joins the features of two inputs into a guide.

    Args:
        in_channels, out_channels: of the two maps and of the guide.
        steps, norm: as of :class:`DenseLayer2d`.

    Shape:
        two (B, C, H, W) -> (B, O, H, W).

    Source:
        Pang et al., section 3.2.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, steps: int = 4, norm: Norm = "batch"
    ) -> None:
        super().__init__()
        reduction = max(in_channels // out_channels, 1)
        self.fuse_down_mul = ConvNormReLU(in_channels, in_channels, norm)
        self.res_main = DenseLayer2d(
            in_channels, in_channels, reduction=reduction, steps=steps, norm=norm
        )
        self.fuse_main = ConvNormReLU(in_channels, out_channels, norm)

    def forward(
        self, rgb: Float[Tensor, "b c h w"], depth: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b o h w"]:
        joined = self.fuse_down_mul(rgb + depth)
        y: Tensor = self.fuse_main(self.res_main(joined) + joined)
        return y


class DynamicDilatedFilter2d(nn.Module):
    r"""Filters every pixel of every channel with a dilated kernel generated from a guide.

    .. math:: y_{c,p} = \sum_{t} k_{c,t,p}(\text{guide})\; x_{c,\, p + d\,\delta_t}

    followed by a 3x3 convolution.

    Args:
        in_channels, guide_channels, out_channels: of x, of the guide, of the result.
        kernel_size: height and width of the kernels, odd.
        dilation: d, in pixels.
        steps, norm: of the kernel-generating network, a :class:`DenseLayer2d`.

    Shape:
        (B, C, H, W) and guide (B, C_guide, H', W') -> (B, O, H, W); a guide of another size is
        resized.

    Source:
        Pang et al., section 3.3, eq. 2.
    """

    def __init__(
        self,
        in_channels: int,
        guide_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        dilation: int = 1,
        steps: int = 4,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        positive(in_channels=in_channels, guide_channels=guide_channels, out_channels=out_channels)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size} must be odd: a filter has a centre")
        self.in_channels, self.kernel_size, self.dilation = in_channels, kernel_size, dilation
        self.generate_kernel = nn.Sequential(
            Conv3x3(guide_channels, guide_channels),
            DenseLayer2d(guide_channels, guide_channels, steps=steps, norm=norm),
            nn.Conv2d(guide_channels, in_channels * kernel_size**2, 1),
        )
        self.fuse = Conv3x3(in_channels, out_channels)

    def kernels(self, guide: Float[Tensor, "b g h w"]) -> Float[Tensor, "b c t h w"]:
        """Kernels generated from the guide: T taps, row-major, per channel and pixel."""
        generated: Tensor = self.generate_kernel(guide)  # (B, C T, H, W)
        by_channel: Tensor = generated.unflatten(1, (self.in_channels, self.kernel_size**2))
        return by_channel

    def filter(
        self, x: Float[Tensor, "b c h w"], kernels: Float[Tensor, "b c t h w"]
    ) -> Float[Tensor, "b c h w"]:
        """The dynamic filtering alone."""
        return filter_locally(x, kernels, (self.kernel_size,) * 2, self.dilation)

    def forward(
        self, x: Float[Tensor, "b c h w"], guide: Float[Tensor, "b g h2 w2"]
    ) -> Float[Tensor, "b o h w"]:
        y: Tensor = self.fuse(self.filter(x, self.kernels(resize_like(guide, x))))
        return y


class DynamicDilatedPyramid2d(nn.Module):
    """Dynamic dilated pyramid module: dynamic filtering at several dilations.

    x -> 1x1 convolution -> one :class:`DynamicDilatedFilter2d` per dilation, all with kernels from
    the guide -> concatenated with the 1x1 convolution's output -> 3x3 convolution, norm, ReLU.

    Args:
        in_channels, guide_channels, out_channels, kernel_size, steps: of the branches.
        dilations: of the parallel branches.
        reduction: the branches are out_channels // reduction wide.
        norm: batch as published, layer, or none.

    Shape:
        (B, C, H, W) and guide (B, C_guide, H', W') -> (B, O, H, W), as of a branch.

    Source:
        Pang et al., section 3.3, fig. 3.
    """

    def __init__(
        self,
        in_channels: int,
        guide_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        dilations: Sequence[int] = (1, 3, 5),
        reduction: int = 4,
        steps: int = 4,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        positive(in_channels=in_channels, out_channels=out_channels, reduction=reduction)
        self.dilations = check_sizes("dilations", dilations)
        width = max(out_channels // reduction, 1)
        self.down_input = nn.Conv2d(in_channels, width, 1)
        branch = functools.partial(
            DynamicDilatedFilter2d, width, guide_channels, width, kernel_size=kernel_size
        )
        for d in self.dilations:
            self.add_module(f"branch_{d}", branch(dilation=d, steps=steps, norm=norm))
        self.fuse = ConvNormReLU(width * (1 + len(self.dilations)), out_channels, norm)

    def forward(
        self, x: Float[Tensor, "b c h w"], guide: Float[Tensor, "b g h2 w2"]
    ) -> Float[Tensor, "b o h w"]:
        guide, down = resize_like(guide, x), self.down_input(x)
        branches = [self.get_submodule(f"branch_{d}")(down, guide) for d in self.dilations]
        y: Tensor = self.fuse(torch.cat([down, *branches], 1))
        return y


class HybridEnhancedLoss(NamedTuple):
    """loss is the mean of edge + region, which are per image and channel."""

    loss: Float[Tensor, ""]
    edge: Float[Tensor, "n c"]
    region: Float[Tensor, "n c"]


def hybrid_enhanced_loss(
    probabilities: Float[Tensor, "n c h w"],
    target: Float[Tensor, "n c h w"] | Bool[Tensor, "n c h w"],
) -> HybridEnhancedLoss:
    r"""HDFNet's loss: the error along the edges, and the missed parts of foreground and background.

    .. math:: \frac{\sum_{p \in E} |P - T|}{|E|}
        + \frac{\sum T (1 - P)}{\sum T} + \frac{\sum (1 - T) P}{\sum (1 - T)}

    where E are the pixels that differ from the mean of their 5x5 window, zero outside the map.

    Args:
        probabilities: P, after the sigmoid.
        target: T, 0 or 1.

    Source:
        Pang et al., section 3.4, eq. 6 to 8; 1e-6 in each denominator as in the published code.
        (The pixel-wise cross entropy that the paper adds is PyTorch's own.)
    """
    target, eps = target.to(probabilities.dtype), 1e-6
    mean = F.avg_pool2d(target, 5, stride=1, padding=2)
    edge = (mean != target).to(probabilities.dtype)

    def share(values: Tensor, pixels: Tensor) -> Tensor:
        return values.sum((2, 3)) / (pixels.sum((2, 3)) + eps)

    background = 1 - target
    along_edge = share(edge * (probabilities - target).abs(), edge)
    missed = share(target - target * probabilities, target)
    region = missed + share(background * probabilities, background)
    return HybridEnhancedLoss((along_edge + region).mean(), along_edge, region)
