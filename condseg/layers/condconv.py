"""CondConv: conditionally parameterized convolutions (Yang et al., NeurIPS 2019)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from condseg.layers.parts import full_precision, init_like_conv_, pool, positive, start_in_pairs_
from condseg.layers.per_sample import mix
from condseg.layers.slot import ConvSlot


class CondConv2d(ConvSlot):
    r"""Convolution with a kernel that is a weighted sum of experts, routed by the input.

    .. math:: y = \Big(\sum_e r_e(x) W_e\Big) * x + \sum_e r_e(x) b_e,
        \qquad r(x) = \mathrm{sigmoid}(R\,\mathrm{pool}(x))

    Args:
        conv, conv_options: ``nn.Conv2d``'s arguments, see :class:`ConvSlot`.
        num_experts: kernels that are mixed (the paper's n), weighted by sigmoids.

    Source:
        Yang et al., "CondConv: Conditionally Parameterized Convolutions for Efficient Inference",
        section 3; the routing's bias and the experts' biases are those of the published code.
    """

    attention_module = "routing_fn"
    # The paper's ResNet-50 and EfficientNet-B0 are dynamic in their last three blocks.
    paper_blocks = 3

    def __init__(self, *conv: Any, num_experts: int = 8, **conv_options: Any) -> None:
        super().__init__(*conv, **conv_options)
        positive(num_experts=num_experts)
        self.num_experts = num_experts
        self.routing_fn = nn.Linear(self.in_channels, num_experts)
        self.weight = nn.Parameter(torch.empty(num_experts, *self.kernel_shape))
        bias = nn.Parameter(torch.empty(num_experts, self.out_channels))
        self.bias = bias if self.has_bias else None
        init_like_conv_(self.weight.data, None if self.bias is None else self.bias.data)

    def routing_weights(self, x: Float[Tensor, "b c *s"]) -> Float[Tensor, "b e"]:
        """Weight 0..1 of each expert for each sample."""
        with full_precision(x):
            return torch.sigmoid(self.routing_fn(pool(x, self.routing_fn.weight)))

    def attentions(self, x: Float[Tensor, "b c *s"]) -> dict[str, Float[Tensor, "b _n"]]:
        return {"kernel": self.routing_weights(x)}

    def kernel_and_bias(self, x: Float[Tensor, "b c *s"]) -> tuple[Tensor, Tensor | None]:
        routing = self.routing_weights(x)
        with full_precision(x):
            bias = None if self.bias is None else mix(routing, self.bias)
            return mix(routing, self.weight), bias

    def _start_from_(self, weight: Tensor, spread: float) -> None:
        """Route experts e and n/2 + e with opposite signs.

        sigmoid(z) + sigmoid(-z) = 1, so each pair counts as one expert while its two members
        weigh samples differently. The routing weight of an odd expert is sigmoid(0) = 1/2.
        """
        half, share = self.num_experts // 2, 2 / self.num_experts
        rows = (self.routing_fn.weight, self.routing_fn.bias)
        for experts in (self.weight[:half], self.weight[half : 2 * half]):
            start_in_pairs_(experts, weight * share, spread, *(r[:half] for r in rows))
        self.weight[2 * half :] = weight * share
        for r in rows:
            r[half : 2 * half] = -r[:half]
            r[2 * half :] = 0
        if self.bias is not None:
            self.bias.mul_(share)


class CondConv1d(CondConv2d):
    dims = 1


class CondConv3d(CondConv2d):
    dims = 3
