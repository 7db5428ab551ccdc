"""ODConv: omni-dimensional dynamic convolution (Li, Zhou, Yao, ICLR 2022)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from condseg.layers.experts import ExpertConv
from condseg.layers.parts import (
    Annealed,
    Linear1x1,
    Norm,
    full_precision,
    pool,
    pooled_norm,
    positive,
)
from condseg.layers.per_sample import CONV, conv_per_sample, mix, output_blocks


class ODAttention(NamedTuple):
    """The four attentions of a batch; None where the layer does not use one."""

    channel: Float[Tensor, "b c"]
    filter: Float[Tensor, "b o"] | None
    spatial: Float[Tensor, "b t"] | None
    kernel: Float[Tensor, "b e"] | None


class Attention(nn.Module):
    """Pool -> linear -> norm -> ReLU -> up to four heads, with the names of the official code."""

    def __init__(
        self,
        channels: int,
        filters: int | None,
        taps: int,
        num_experts: int,
        hidden: int,
        norm: Norm,
    ) -> None:
        super().__init__()
        self.fc = Linear1x1(channels, hidden, bias=False)
        self.bn = pooled_norm(norm, hidden)
        self.channel_fc = Linear1x1(hidden, channels)
        self.filter_fc = Linear1x1(hidden, filters) if filters is not None else None
        self.spatial_fc = Linear1x1(hidden, taps) if taps > 1 else None
        self.kernel_fc = Linear1x1(hidden, num_experts) if num_experts > 1 else None
        for head in (self.fc, *self.sigmoid_heads, self.kernel_fc):
            if head is not None:
                nn.init.kaiming_normal_(head.weight, mode="fan_out", nonlinearity="relu")
                if head.bias is not None:
                    nn.init.zeros_(head.bias)

    @property
    def sigmoid_heads(self) -> list[Linear1x1]:
        heads = (self.channel_fc, self.filter_fc, self.spatial_fc)
        return [head for head in heads if head is not None]

    def forward(self, x: Float[Tensor, "b c *s"], temperature: Tensor) -> ODAttention:
        hidden = torch.relu(self.bn(self.fc(pool(x, self.fc.weight))))
        heads = (self.channel_fc, self.filter_fc, self.spatial_fc)
        sigmoids = [None if h is None else torch.sigmoid(h(hidden) / temperature) for h in heads]
        kernel = None
        if self.kernel_fc is not None:
            kernel = torch.softmax(self.kernel_fc(hidden) / temperature, dim=1)
        return ODAttention._make([*sigmoids, kernel])


class ODConv2d(ExpertConv, Annealed):
    r"""Convolution whose kernel has attentions along its four axes, computed from the input.

    .. math:: y = \Big(\sum_e \alpha_w^e\, \alpha_f \odot \alpha_c \odot \alpha_s \odot W_e\Big)
        * x + b

    The spatial attention :math:`\alpha_s`, the channel attention :math:`\alpha_c` and the filter
    attention :math:`\alpha_f` are sigmoids, the kernel attention :math:`\alpha_w` is a softmax
    over the experts. One small network computes them from the globally pooled input. With one
    expert there is no :math:`\alpha_w`; with a 1x1 kernel no :math:`\alpha_s`; depthwise no
    :math:`\alpha_f`.

    Args:
        conv, conv_options: ``nn.Conv2d``'s arguments, see :class:`ConvSlot`.
        num_experts: kernels that are mixed (the paper's n).
        reduction: width of the attention network, relative to in_channels.
        min_hidden: its smallest width.
        temperature: divides all logits; annealed from 31 to 1 over the first epochs.
        norm: of the attention's hidden vector.

    Source:
        Li et al., "Omni-Dimensional Dynamic Convolution", eq. 2 and section 3.2. A bias
        (the published layer has none) is added without attention, so that the bias of a static
        convolution can be kept. At batch 1 the attention's batch norm uses its running statistics,
        where the published layer raises an error.
    """

    attention_module = "attention"
    folds_norms = True

    def __init__(
        self,
        *conv: Any,
        num_experts: int = 4,
        reduction: float = 0.0625,
        min_hidden: int = 16,
        temperature: float = 1.0,
        norm: Norm = "batch",
        **conv_options: Any,
    ) -> None:
        super().__init__(*conv, num_experts=num_experts, **conv_options)
        positive(reduction=reduction, min_hidden=min_hidden)
        self.attention = Attention(
            self.in_channels,
            None if self.depthwise else self.out_channels,
            math.prod(self.kernel_size),
            num_experts,
            max(int(self.in_channels * reduction), min_hidden),
            norm,
        )
        self.bias = nn.Parameter(torch.zeros(self.out_channels)) if self.has_bias else None
        self._add_temperature(temperature)
        for kernel in self.weight.data:
            nn.init.kaiming_normal_(kernel, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Float[Tensor, "b c *s"]) -> Float[Tensor, "b o *s_out"]:
        with full_precision(x):
            attention = self._attend(x)
            # Channel and filter attention scale the maps or the kernel, whichever is smaller. A
            # kernel that they do not scale may then be shared by all samples.
            small = torch.compiler.is_exporting()  # the maps' size is not known then
            fold = small or math.prod(self.kernel_shape) < x[:1].numel()
        channel, filter_ = (None, None) if fold else (attention.channel, attention.filter)
        ones = (1,) * self.dims
        if channel is not None:
            x = x * channel.to(x.dtype).view(*channel.shape, *ones)
        x, padding = self.pad(x)
        where = (self.stride, padding, self.dilation, self.groups)
        bias = self.bias if filter_ is None else None
        if attention.kernel is None and attention.spatial is None and not fold:
            y: Tensor = CONV[self.dims](x, self.weight[0], bias, *where)
        else:
            parts = []
            for rows in output_blocks(x, self.kernel_shape, self.groups):
                with full_precision(x):
                    kernel = self._kernel(attention, fold, rows)
                own = None if bias is None else bias[rows].expand(x.shape[0], -1)
                parts.append(conv_per_sample(x, kernel, own, *where))
            y = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        if filter_ is None:
            return y
        y = y * filter_.to(y.dtype).view(*filter_.shape, *ones)
        return y if self.bias is None else y + self.bias.to(y.dtype).view(-1, *ones)

    def _attend(self, x: Tensor) -> ODAttention:
        """The attentions; at natural scale, sigmoids are doubled and so start at 1."""
        attention: ODAttention = self.attention(x, self.temperature)
        if not self.natural_scale:
            return attention
        *sigmoids, experts = attention
        return ODAttention._make([*(None if s is None else 2 * s for s in sigmoids), experts])

    def _kernel(self, attention: ODAttention, fold: bool, rows: slice = slice(None)) -> Tensor:
        """Kernels of the samples, (B, O, C / groups, *k), or of some output channels."""
        channel, filter_, spatial, experts = attention
        weight = self.experts(self.weight)[:, rows]
        per_group = (self.groups, weight.shape[1] // self.groups)
        kernel = weight if experts is None else mix(experts, weight)
        kernel = kernel.flatten(3).unflatten(1, per_group)  # (B or 1, g, O/g, C/g, T)
        # Attentions are multiplied with each other first: the kernel is larger than they are.
        factor = None
        if spatial is not None:
            factor = spatial.view(-1, 1, 1, 1, spatial.shape[1])  # (B, 1, 1, 1, T)
        if fold:
            # (B, g, 1, C/g, 1)
            by_channel = channel.view(-1, self.groups, 1, self.in_channels // self.groups, 1)
            factor = by_channel if factor is None else by_channel * factor
        # A kernel that was just mixed, and that no gradient needs, is scaled in place.
        times = torch.mul if experts is None or torch.is_grad_enabled() else Tensor.mul_
        if factor is not None:
            kernel = times(kernel, factor)
        if fold and filter_ is not None:
            kernel = times(kernel, filter_[:, rows].view(-1, *per_group, 1, 1))
        kernels: Tensor = kernel.reshape(-1, weight.shape[1], *self.kernel_shape[1:])
        return kernels

    def attentions(self, x: Float[Tensor, "b c *s"]) -> dict[str, Float[Tensor, "b _n"]]:
        with full_precision(x):
            axes = self._attend(x)._asdict()
        return {axis: values for axis, values in axes.items() if values is not None}

    def kernel_and_bias(self, x: Float[Tensor, "b c *s"]) -> tuple[Tensor, Tensor | None]:
        with full_precision(x):
            kernel = self._kernel(self._attend(x), fold=True)
        return kernel, None if self.bias is None else self.bias.expand(x.shape[0], -1)

    def heads(self) -> list[nn.Module]:
        heads = [*self.attention.sigmoid_heads, self.attention.kernel_fc]
        return [head for head in heads if head is not None]


class ODConv1d(ODConv2d):
    dims = 1


class ODConv3d(ODConv2d):
    dims = 3
