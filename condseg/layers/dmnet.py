"""DMNet: dynamic multi-scale filters, pooled from the content (He, Deng, Qiao, ICCV 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from condseg.layers.parts import Norm, check_sizes, map_norm, positive
from condseg.layers.per_sample import conv_per_sample
from condseg.layers.winograd import Conv3x3


class _ConvNormAct(nn.Module):
    """Convolution -> norm -> ReLU; the convolution has a bias only without a norm."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, norm: Norm) -> None:
        super().__init__()
        bias = norm == "none"
        self.conv = (
            Conv3x3(in_channels, out_channels, bias)
            if kernel_size == 3
            else nn.Conv2d(in_channels, out_channels, kernel_size, bias=bias)
        )
        self.bn = map_norm(norm, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class DynamicContextFilter2d(nn.Module):
    r"""Dynamic convolutional module: filters each channel with a kernel pooled from the content.

    .. math:: y = \mathrm{ReLU}(\mathrm{norm}(g_k(x) \circledast f(x))), \qquad
        g_k(x) = \mathrm{conv}_{1 \times 1}(\mathrm{pool}_{k \times k}(x))

    Args:
        in_channels, channels: of x; of f(x) and of the result.
        filter_size: k, the kernel's height and width; zero padding keeps the map's size, with one
            pixel more at the left and the top for an even kernel.
        guide_channels: channels of the map from which the filters are pooled; x's by default.
        fusion: whether a 1x1 convolution follows.
        norm: batch as published, layer, or none.

    Shape:
        (B, C, H, W) -> (B, channels, H, W); the guide (B, C_guide, any size) is x by default.

    Source:
        He et al., "Dynamic Multi-scale Filters for Semantic Segmentation", section 3.2, fig. 2.
        The guide is ours: with it the filters can be computed from a second image.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        filter_size: int,
        *,
        guide_channels: int | None = None,
        fusion: bool = False,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        positive(in_channels=in_channels, channels=channels, filter_size=filter_size)
        self.filter_size = filter_size
        guide_channels = in_channels if guide_channels is None else guide_channels
        self.filter_gen_conv = nn.Conv2d(guide_channels, channels, 1)
        self.input_redu_conv = _ConvNormAct(in_channels, channels, 1, norm)
        self.norm = map_norm(norm, channels)
        self.fusion_conv = _ConvNormAct(channels, channels, 1, norm) if fusion else nn.Identity()

    def filters(self, guide: Float[Tensor, "b g h w"]) -> Float[Tensor, "b c k k"]:
        """Kernels pooled from the guide, one per channel."""
        pooled = F.adaptive_avg_pool2d(guide, self.filter_size)
        kernels: Tensor = self.filter_gen_conv(pooled)
        return kernels

    def forward(
        self, x: Float[Tensor, "b c h w"], guide: Float[Tensor, "b g h2 w2"] | None = None
    ) -> Float[Tensor, "b d h w"]:
        kernels = self.filters(x if guide is None else guide)
        x = self.input_redu_conv(x)
        after = (self.filter_size - 1) // 2
        before = self.filter_size - 1 - after
        if before != after:
            x, before, after = F.pad(x, (before, after, before, after)), 0, 0
        y = self._convolve(x, kernels.unsqueeze(2), after)
        fused: Tensor = self.fusion_conv(F.relu(self.norm(y)))
        return fused

    def _convolve(self, x: Tensor, kernels: Tensor, padding: int) -> Tensor:
        return conv_per_sample(x, kernels, padding=(padding, padding), groups=x.shape[1])


class DynamicMultiScaleFilter2d(nn.Module):
    """DMNet's filtering at several scales: x and its filtered versions, then a 3x3 convolution.

    Args:
        in_channels: channels of x.
        guide_channels: channels of the map from which the filters are pooled; x's by default.
        out_channels: in_channels by default.
        channels: of each scale; out_channels by default.
        filter_sizes: of the parallel branches.
        fusion, norm: of the branches, see :class:`DynamicContextFilter2d`.

    Shape:
        (B, C, H, W) -> (B, O, H, W); the guide (B, C_guide, any size) is x by default.

    Source:
        He et al., "Dynamic Multi-scale Filters for Semantic Segmentation", section 3.1.
    """

    def __init__(
        self,
        in_channels: int,
        guide_channels: int | None = None,
        out_channels: int | None = None,
        *,
        channels: int | None = None,
        filter_sizes: Sequence[int] = (1, 3, 5, 7),
        fusion: bool = False,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        out = in_channels if out_channels is None else out_channels
        width = out if channels is None else channels
        self.filter_sizes = check_sizes("filter_sizes", filter_sizes)
        self.guided = guide_channels is not None
        self.dcm_modules = nn.ModuleList(
            DynamicContextFilter2d(
                in_channels, width, k, guide_channels=guide_channels, fusion=fusion, norm=norm
            )
            for k in self.filter_sizes
        )
        total = in_channels + width * len(self.filter_sizes)
        self.bottleneck = _ConvNormAct(total, out, 3, norm)

    def forward(
        self, x: Float[Tensor, "b c h w"], guide: Float[Tensor, "b g h2 w2"] | None = None
    ) -> Float[Tensor, "b o h w"]:
        if self.guided and guide is None:
            raise ValueError("guide=None, but the layer was built with guide_channels")
        y: Tensor = self.bottleneck(torch.cat([x, *(dcm(x, guide) for dcm in self.dcm_modules)], 1))
        return y
