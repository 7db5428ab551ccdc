"""Squeeze and excitation as a layer: the cheap rival of the dynamic convolutions."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from condseg.layers import ConvSlot
from condseg.layers.parts import Linear1x1, full_precision, pool, positive
from condseg.layers.per_sample import CONV


class SEConv2d(ConvSlot):
    r"""Convolution whose input channels are scaled by a function of their global means.

    .. math:: y = W * (2 \sigma(F_2\, \mathrm{ReLU}(F_1\, \bar x)) \odot x) + b

    The gates start at 1, so a layer that starts from a static convolution computes the same.

    Args:
        conv, conv_options: ``nn.Conv2d``'s arguments, see :class:`ConvSlot`.
        reduction: hidden width, relative to in_channels; the defaults are those of ODConv.
        min_hidden: the smallest hidden width.

    Source:
        Hu et al., "Squeeze-and-Excitation Networks" (CVPR 2018), eq. 2 to 4. There the gates are
        sigmoids without the factor 2, and scale the output of a block.
    """

    attention_module = "attention"
    folds_norms = True

    def __init__(
        self, *conv: Any, reduction: float = 0.0625, min_hidden: int = 16, **conv_options: Any
    ) -> None:
        super().__init__(*conv, **conv_options)
        positive(reduction=reduction, min_hidden=min_hidden)
        hidden = max(int(self.in_channels * reduction), min_hidden)
        first, last = Linear1x1(self.in_channels, hidden), Linear1x1(hidden, self.in_channels)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.attention = nn.Sequential(first, nn.ReLU(), last)
        self.hidden = hidden
        self.weight = nn.Parameter(torch.empty(1, *self.kernel_shape))
        nn.init.kaiming_uniform_(self.weight[0], a=math.sqrt(5))  # as nn.Conv2d
        self.bias = nn.Parameter(torch.zeros(self.out_channels)) if self.has_bias else None

    @property
    def attention_lr(self) -> float:
        """That of the dynamic layers whose heads have as many inputs."""
        return 0.5 / self.hidden

    def attentions(self, x: Float[Tensor, "b c *s"]) -> dict[str, Float[Tensor, "b _n"]]:
        with full_precision(x):
            return {"channel": 2 * torch.sigmoid(self.attention(pool(x, self.weight)))}

    def forward(self, x: Float[Tensor, "b c *s"]) -> Float[Tensor, "b o *s_out"]:
        gates = self.attentions(x)["channel"].to(x.dtype)
        x, padding = self.pad(x * gates.view(*gates.shape, *(1,) * self.dims))
        where = (self.stride, padding, self.dilation, self.groups)
        y: Tensor = CONV[self.dims](x, self.weight[0], self.bias, *where)
        return y

    def kernel_and_bias(self, x: Float[Tensor, "b c *s"]) -> tuple[Tensor, Tensor | None]:
        gates = self.attentions(x)["channel"].unflatten(1, (self.groups, 1, -1))  # (B, g, 1, C/g)
        kernels = self.weight[0].flatten(2).unflatten(0, (self.groups, -1))  # (g, O/g, C/g, T)
        kernel = (kernels * gates.unsqueeze(-1)).reshape(-1, *self.kernel_shape)
        return kernel, None if self.bias is None else self.bias.expand(len(x), -1)

    def _start_from_(self, weight: Tensor, spread: float) -> None:
        self.weight[0].copy_(weight)
