"""The one place that knows how a batch of different kernels is convolved.

Everything here is exact; what is chosen is only the order of the arithmetic. Measured on CPU, a
grouped convolution with B*groups groups costs what one shared kernel costs (depthwise, 3x3 and
5x5, forward and backward), and 1x1 kernels are fastest as a batched matrix product; unfolding and
summing over taps were slower. One convolution a sample is slower, too, except on CPU for kernels
without groups (at ResNet-50's sizes and batch 8 as fast, or up to twice) and for maps in
channels_last, whose depthwise kernels are twice as fast and know no B*groups groups without a copy.

B samples, E experts, C input channels, O output channels, *k the kernel's size, *s the map's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from condseg.layers.depthwise import conv_depthwise
from condseg.layers.implementation import Implementation
from condseg.layers.winograd import conv3x3

Steps = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]  # stride, padding, dilation
BLOCK, OUTPUTS = 2**21, 32  # numbers of the kernels made at a time; in so many output channels
CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def conv_per_sample(
    x: Float[Tensor, "b c *s"],
    weight: Float[Tensor, "b o c_per_group *k"],
    bias: Float[Tensor, "b o"] | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    implementation: Implementation = "fast",
) -> Float[Tensor, "b o *s_out"]:
    r"""Convolve every sample with its own kernel: :math:`y_b = W_b * x_b + \beta_b`.

    Args:
        x: the maps; the batch may be empty.
        weight: one kernel a sample, laid out as ``nn.Conv2d`` has it.
        bias: one bias a sample.
        stride, padding, dilation, groups: as in ``nn.Conv2d``; padding is with zeros.
        implementation: "fast", or "reference", which has the samples as groups of one convolution.

    Shape:
        (B, C, *s) and (B, O, C / groups, *k) -> (B, O, *s_out), in one, two or three dimensions.
    """
    dims = x.dim() - 2
    batch = x.shape[0]
    steps: Steps = (tuple(stride), tuple(padding), tuple(dilation))
    if batch == 0:
        y = CONV[dims](x, weight.sum(0), None, *steps, groups)
    elif implementation == "reference":
        y = _samples_as_groups(x, weight, steps, groups)
    elif batch == 1:
        return _conv_one(x, weight[0], None if bias is None else bias[0], steps, groups)
    elif math.prod(weight.shape[3:]) == 1:
        y = _matmul_per_sample(x, weight, stride, padding, groups)
    elif x.device.type == "cpu" and (groups == 1 or is_channels_last(x)):
        biases = [None] * batch if bias is None else bias.unbind()
        samples = zip(x.split(1), weight.unbind(), biases, strict=True)
        return torch.cat([_conv_one(*sample, steps, groups) for sample in samples])
    elif dims == 2 and groups == x.shape[1] == weight.shape[1]:
        beside, kernels = x.reshape(1, -1, *x.shape[2:]), weight.flatten(0, 1)
        y = conv_depthwise(beside, kernels, *steps)
        y = y.view(batch, -1, *y.shape[2:])
    else:
        y = _samples_as_groups(x, weight, steps, groups)
    if bias is not None:
        y = y + bias.to(y.dtype).view(*bias.shape, *(1,) * dims)
    return y


def _conv_one(x: Tensor, weight: Tensor, bias: Tensor | None, steps: Steps, groups: int) -> Tensor:
    if weight.shape[2:] == (3, 3) and steps == ((1, 1), (1, 1), (1, 1)) and groups == 1:
        return conv3x3(x, weight, bias)
    return CONV[x.dim() - 2](x, weight, bias, *steps, groups)


def _samples_as_groups(x: Tensor, weight: Tensor, steps: Steps, groups: int) -> Tensor:
    """The published form: all samples side by side, as groups of one convolution."""
    batch = x.shape[0]
    beside, kernels = x.reshape(1, -1, *x.shape[2:]), weight.flatten(0, 1)
    y = CONV[x.dim() - 2](beside, kernels, None, *steps, batch * groups)
    return y.view(batch, -1, *y.shape[2:])


def _matmul_per_sample(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], groups: int
) -> Tensor:
    if any(padding):
        x = F.pad(x, [p for size in reversed(padding) for p in (size, size)])
    if any(s != 1 for s in stride):
        x = x[(slice(None), slice(None), *(slice(None, None, s) for s in stride))]
    batch, out_channels, size = x.shape[0], weight.shape[1], x.shape[2:]
    if groups == 1 and is_channels_last(x):
        rows = torch.bmm(x.permute(0, 2, 3, 1).flatten(1, 2), weight.flatten(2).transpose(1, 2))
        return rows.view(batch, *size, out_channels).permute(0, 3, 1, 2)
    x = x.reshape(batch * groups, x.shape[1] // groups, -1)
    weight = weight.reshape(batch * groups, out_channels // groups, -1)
    return torch.bmm(weight, x).view(batch, out_channels, *size)


def output_blocks(x: Tensor, kernel_shape: Sequence[int], groups: int) -> list[slice]:
    """Output channels whose kernels of all samples stay in the cache between their making and use.

    On the CPU and without gradients, which would keep all kernels in any case.

    Args:
        x: the maps.
        kernel_shape: (O, C / groups, *k) of one sample's kernel.
        groups: of the convolution; with several, all channels are one block.
    """
    out, *each = kernel_shape
    most = BLOCK // max(1, len(x) * math.prod(each))
    step = OUTPUTS * max(1, most // OUTPUTS)
    whole = torch.is_grad_enabled() or torch.compiler.is_compiling() or groups > 1
    if whole or x.device.type != "cpu" or step >= out:
        return [slice(None)]
    return [slice(start, start + step) for start in range(0, out, step)]


def is_channels_last(x: Tensor) -> bool:
    """Whether a map lies in memory pixel by pixel (and not, as well, channel by channel)."""
    return (
        x.dim() == 4
        and x.is_contiguous(memory_format=torch.channels_last)
        and not x.is_contiguous()
    )


def mix(
    coefficients: Float[Tensor, "b e *o"], experts: Float[Tensor, "e o *rest"]
) -> Float[Tensor, "b o *rest"]:
    r"""Mix experts for each sample: :math:`W_b = \sum_e c_{be} W_e`.

    Args:
        coefficients: (B, E), or (B, E, O) for one mixture an output channel.
        experts: (E, O, ...) kernels or biases.

    Shape:
        (B, E) and (E, O, ...) -> (B, O, ...).
    """
    if coefficients.dim() == 2:
        return (coefficients @ experts.flatten(1)).view(-1, *experts.shape[1:])
    mixed = torch.einsum("beo,eor->bor", coefficients, experts.flatten(2))
    return mixed.view(-1, *experts.shape[1:])


def conv_experts(
    x: Float[Tensor, "b c *s"],
    experts: Float[Tensor, "e o c_per_group *k"],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Float[Tensor, "b e o *s_out"]:
    """Convolve every sample with every expert, as one ordinary convolution of E*O channels."""
    num, out = experts.shape[:2]
    stacked = experts.unflatten(1, (groups, out // groups)).transpose(0, 1).flatten(0, 2)
    y = CONV[x.dim() - 2](x, stacked, None, stride, padding, dilation, groups)
    maps: Tensor = y.unflatten(1, (groups, num, out // groups))
    return maps.transpose(1, 2).flatten(2, 3)
