"""DyNet: dynamic convolution with a coefficient per output channel (Zhang et al., 2020)."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from condseg.layers.experts import ExpertConv
from condseg.layers.parts import full_precision, init_like_conv_, pool
from condseg.layers.per_sample import conv_experts, mix


class DyNetConv2d(ExpertConv):
    r"""Convolution whose every output channel has its own mixture of fixed kernels.

    .. math:: y_o = \Big(\sum_e c_{eo}(x)\, W_{eo}\Big) * x + b_o
        = \sum_e c_{eo}(x)\, (W_{eo} * x) + b_o

    The two forms are equal: maps are mixed in training (one ordinary convolution for the whole
    batch), kernels in inference (fewer multiplications).

    Args:
        conv, conv_options: ``nn.Conv2d``'s arguments; the bias is one, not mixed.
        num_experts: fixed kernels an output channel (the paper's g_t).
        dropout: rate, in front of the coefficients' linear layer.
        mixing: what is mixed; ``"auto"`` is features in training and kernels in inference.

    Source:
        Zhang et al., "DyNet: Dynamic Convolution for Accelerating Convolutional Neural Networks",
        sections 3.2 and 3.3.
    """

    attention_module = "coefficient_fn"
    folds_norms = True

    def __init__(
        self,
        *conv: Any,
        num_experts: int = 4,
        dropout: float = 0.2,
        mixing: Literal["auto", "features", "kernels"] = "auto",
        **conv_options: Any,
    ) -> None:
        super().__init__(*conv, num_experts=num_experts, **conv_options)
        if mixing not in ("auto", "features", "kernels"):
            raise ValueError(f"mixing={mixing!r} must be 'auto', 'features' or 'kernels'")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} must be in [0, 1)")
        self.dropout, self.mixing = dropout, mixing
        self.coefficient_fn = nn.Linear(self.in_channels, num_experts * self.out_channels)
        self.bias = nn.Parameter(torch.empty(self.out_channels)) if self.has_bias else None
        init_like_conv_(self.weight.data, None if self.bias is None else self.bias.data)

    def coefficients(self, x: Float[Tensor, "b c *s"]) -> Float[Tensor, "b e o"]:
        """Weight of each expert for each output channel; a softmax over the experts."""
        with full_precision(x):
            pooled = F.dropout(pool(x, self.coefficient_fn.weight), self.dropout, self.training)
            logits: Tensor = self.coefficient_fn(pooled)
            return logits.view(-1, self.num_experts, self.out_channels).softmax(dim=1)

    def forward(self, x: Float[Tensor, "b c *s"]) -> Float[Tensor, "b o *s_out"]:
        if self.mixing == "kernels" or (self.mixing == "auto" and not self.training):
            return super().forward(x)
        coefficients = self.coefficients(x)
        x, padding = self.pad(x)
        where = (self.stride, padding, self.dilation, self.groups)
        maps = conv_experts(x, self.experts(self.weight), *where)
        ones = (1,) * self.dims
        coefficients = coefficients.to(maps.dtype).view(*coefficients.shape, *ones)
        y = (maps * coefficients).sum(1)  # (B, E, O, *s) -> (B, O, *s)
        return y if self.bias is None else y + self.bias.to(y.dtype).view(-1, *ones)

    def attentions(self, x: Float[Tensor, "b c *s"]) -> dict[str, Float[Tensor, "b _n"]]:
        """Means of the coefficients over the output channels, and each channel's maximum."""
        coefficients = self.coefficients(x)  # (B, E, O)
        return {"kernel": coefficients.mean(2), "filter": coefficients.amax(1)}

    def kernel_and_bias(self, x: Float[Tensor, "b c *s"]) -> tuple[Tensor, Tensor | None]:
        with full_precision(x):
            kernel = mix(self.coefficients(x), self.experts(self.weight))
        return kernel, None if self.bias is None else self.bias.expand(x.shape[0], -1)

    def heads(self) -> list[nn.Module]:
        return [self.coefficient_fn]


class DyNetConv1d(DyNetConv2d):
    dims = 1


class DyNetConv3d(DyNetConv2d):
    dims = 3
