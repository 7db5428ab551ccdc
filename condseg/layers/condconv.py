"""CondConv: conditionally parameterized convolutions (Yang et al., NeurIPS 2019)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from condseg.layers.experts import ExpertConv
from condseg.layers.parts import full_precision, init_like_conv_, pool
from condseg.layers.per_sample import mix


class CondConv2d(ExpertConv):
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
        super().__init__(*conv, num_experts=num_experts, **conv_options)
        self.routing_fn = nn.Linear(self.in_channels, num_experts)
        bias = nn.Parameter(torch.empty(num_experts, self.out_channels))
        self.bias = bias if self.has_bias else None
        init_like_conv_(self.weight.data, None if self.bias is None else self.bias.data)

    def routing_weights(self, x: Float[Tensor, "b c *s"]) -> Float[Tensor, "b e"]:
        """Weight of each expert for each sample: 0..1, times 2 / E at natural scale."""
        with full_precision(x):
            routing = torch.sigmoid(self.routing_fn(pool(x, self.routing_fn.weight)))
            return routing * (2 / self.num_experts) if self.natural_scale else routing

    def attentions(self, x: Float[Tensor, "b c *s"]) -> dict[str, Float[Tensor, "b _n"]]:
        return {"kernel": self.routing_weights(x)}

    def kernel_and_bias(self, x: Float[Tensor, "b c *s"]) -> tuple[Tensor, Tensor | None]:
        routing = self.routing_weights(x)
        with full_precision(x):
            bias = None if self.bias is None else mix(routing, self.experts(self.bias))
            return mix(routing, self.experts(self.weight)), bias

    def heads(self) -> list[nn.Module]:
        return [self.routing_fn]


class CondConv1d(CondConv2d):
    dims = 1


class CondConv3d(CondConv2d):
    dims = 3
