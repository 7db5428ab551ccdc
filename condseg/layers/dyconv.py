"""DyConv: attention over convolution kernels (Chen et al., CVPR 2020)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from condseg.layers.experts import ExpertConv
from condseg.layers.parts import (
    Annealed,
    Linear1x1,
    full_precision,
    init_like_conv_,
    pool,
    positive,
)
from condseg.layers.per_sample import mix


class _Attention(nn.Module):
    """Pool -> linear -> ReLU -> linear -> softmax over the experts."""

    def __init__(self, channels: int, num_experts: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear1x1(channels, hidden, bias=False)
        self.fc2 = Linear1x1(hidden, num_experts)

    def forward(self, x: Float[Tensor, "b c *s"], temperature: Tensor) -> Float[Tensor, "b e"]:
        logits = self.fc2(torch.relu(self.fc1(pool(x, self.fc1.weight))))
        return torch.softmax(logits / temperature, dim=1)


class DyConv2d(ExpertConv, Annealed):
    r"""Convolution with a kernel that is a convex mixture of experts, chosen by the input.

    .. math:: y = \Big(\sum_e \pi_e(x) W_e\Big) * x + \sum_e \pi_e(x) b_e,
        \qquad \pi(x) = \mathrm{softmax}(f(x) / \tau)

    Args:
        conv, conv_options: ``nn.Conv2d``'s arguments, see :class:`ConvSlot`.
        num_experts: kernels that are mixed (the paper's K).
        reduction: width of the attention network relative to in_channels; one is added to it, and
            for images (3 channels) it is num_experts, both as in the public implementation.
        temperature: of the softmax; annealed from about 30 to 1 over the first epochs.

    Source:
        Chen et al., "Dynamic Convolution: Attention over Convolution Kernels", eq. 2 and 4.
    """

    attention_module = "attention"
    folds_norms = True
    # The paper's networks are dynamic in all convolutions but the first.
    paper_shortcuts = True

    def __init__(
        self,
        *conv: Any,
        num_experts: int = 4,
        reduction: float = 0.25,
        temperature: float = 1.0,
        **conv_options: Any,
    ) -> None:
        super().__init__(*conv, num_experts=num_experts, **conv_options)
        positive(reduction=reduction)
        hidden = num_experts if self.in_channels == 3 else int(self.in_channels * reduction) + 1
        self.attention = _Attention(self.in_channels, num_experts, hidden)
        bias = nn.Parameter(torch.empty(num_experts, self.out_channels))
        self.bias = bias if self.has_bias else None
        self._add_temperature(temperature)
        init_like_conv_(self.weight.data, None if self.bias is None else self.bias.data)

    def attentions(self, x: Float[Tensor, "b c *s"]) -> dict[str, Float[Tensor, "b _n"]]:
        with full_precision(x):
            return {"kernel": self.attention(x, self.temperature)}

    def kernel_and_bias(self, x: Float[Tensor, "b c *s"]) -> tuple[Tensor, Tensor | None]:
        attention = self.attentions(x)["kernel"]
        with full_precision(x):
            bias = None if self.bias is None else mix(attention, self.experts(self.bias))
            return mix(attention, self.experts(self.weight)), bias

    def fold_norm_(self, norm: _BatchNorm) -> bool:
        folded = super().fold_norm_(norm)
        assert self.bias is not None
        if self.bias.dim() == 1:  # attentions sum to one: every expert has the whole bias
            self.bias = nn.Parameter(self.bias.detach().repeat(self.num_experts, 1))
        return folded

    def heads(self) -> list[nn.Module]:
        return [self.attention.fc2]


class DyConv1d(DyConv2d):
    dims = 1


class DyConv3d(DyConv2d):
    dims = 3
