"""Deformable convolution, modulated (Zhu et al., 2019)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from condseg.layers.parts import full_precision, init_like_conv_
from condseg.layers.slot import ConvSlot


class DeformConv2d(ConvSlot):
    r"""Convolution whose taps are moved and weighted at each position, as computed from the input.

    .. math:: y(p) = b + \sum_k W_k\, m_k(p)\, x(p + p_k + \Delta_k(p))

    with the offsets :math:`\Delta` and the sigmoid of the modulations :math:`m` from one
    convolution, whose weights start at zero: every modulation starts at one half.

    Args:
        conv, conv_options: ``nn.Conv2d``'s arguments, see :class:`ConvSlot`.

    Attributes:
        offset: convolution of x to 2 K offsets (y, x of each tap) and K modulations; K taps.

    Source:
        Zhu et al., "Deformable ConvNets v2", equation 1. A static convolution's kernel is
        doubled for the start, so that the output stays the same.
    """

    def __init__(self, *conv: Any, **conv_options: Any) -> None:
        super().__init__(*conv, **conv_options)
        self.taps = math.prod(self.kernel_size)
        self.weight = nn.Parameter(torch.empty(self.kernel_shape))
        self.bias = nn.Parameter(torch.empty(self.out_channels)) if self.has_bias else None
        init_like_conv_(self.weight.data[None], None if self.bias is None else self.bias.data)
        height, width = self.kernel_size
        self.offset = nn.Conv2d(self.in_channels, 3 * self.taps, (height, width))
        for parameter in self.offset.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o h2 w2"]:
        kind = x.device.type
        autocast = kind != "meta" and torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if autocast else x.dtype
        x, padding = self.pad(x)
        where = (self.stride, padding, self.dilation)
        with full_precision(x):  # torchvision's kernel lacks half precision on some devices
            x = x.to(self.weight.dtype)
            moved = F.conv2d(x, self.offset.weight, self.offset.bias, *where)
            offsets, modulation = moved.split([2 * self.taps, self.taps], dim=1)
            y: Tensor = deform_conv2d(
                x, offsets, self.weight, self.bias, *where, modulation.sigmoid()
            )
        return y.to(dtype)

    def why_not_static(self) -> str:
        return "its taps depend on the position"

    def _start_from_(self, weight: Tensor, spread: float) -> None:
        """No offsets, modulations of 1/2, and a doubled kernel."""
        self.weight.copy_(2 * weight)
        for parameter in self.offset.parameters():
            nn.init.zeros_(parameter)
