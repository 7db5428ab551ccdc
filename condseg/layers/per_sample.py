"""Convolves each sample of a batch with a kernel of its own.

All paths compute the same sum; only the order of the arithmetic differs. Measured on CPU:

- one convolution with B * groups groups takes as long as one shared kernel (depthwise, 3x3 and
  5x5, forward and backward);
- 1x1 kernels are fastest as a batched matrix product;
- unfolding, or a sum over taps, is slower;
- one convolution per sample is slower, except for kernels without groups (as fast at ResNet-50's
  sizes and batch 8, or up to twice as fast) and for maps in channels_last, whose depthwise kernels
  are twice as fast and need a copy for B * groups groups.

B samples, E experts, C input channels, O output channels, *k the kernel's size, *s the map's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from condseg.layers.depthwise import conv_depthwise
from condseg.layers.winograd import conv3x3

Steps = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]  # stride, padding, dilation
BLOCK, OUTPUTS = 2**21, 32  # elements of the kernels mixed at a time; multiple of channels
CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def conv_per_sample(
    x: Float[Tensor, "b c *s"],
    weight: Float[Tensor, "b o c_per_group *k"],
    bias: Float[Tensor, "b o"] | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Float[Tensor, "b o *s_out"]:
    r"""Convolve every sample with its own kernel: :math:`y_b = W_b * x_b + \beta_b`.

    Stride, zero padding, dilation and groups are as in ``nn.Conv2d``.

    Shape:
        (B, C, *s), (B, O, C / groups, *k) and (B, O) -> (B, O, *s_out), in one, two or three
        dimensions; B may be 0.
    """
    dims = x.dim() - 2
    batch = x.shape[0]
    steps: Steps = (tuple(stride), tuple(padding), tuple(dilation))
    if batch == 0:
        y = CONV[dims](x, weight.sum(0), None, *steps, groups)
    elif batch == 1:
        return _conv_one(x, weight[0], None if bias is None else bias[0], steps, groups)
    elif math.prod(weight.shape[3:]) == 1:
        y = _matmul_per_sample(x, weight, stride, padding, groups)
    elif torch.compiler.is_exporting():
        y = _unfolded_per_sample(x, weight, steps, groups)
    elif x.device.type == "cpu" and (groups == 1 or is_channels_last(x)):
        biases = [None] * batch if bias is None else bias.unbind()
        samples = zip(x.split(1), weight.unbind(), biases, strict=True)
        return torch.cat([_conv_one(*sample, steps, groups) for sample in samples])
    else:  # all samples in one convolution, as its groups
        beside, kernels = x.reshape(1, -1, *x.shape[2:]), weight.flatten(0, 1)  # (1, B C, *s)
        if dims == 2 and groups == x.shape[1] == weight.shape[1]:
            y = conv_depthwise(beside, kernels, *steps)
        else:
            y = CONV[dims](beside, kernels, None, *steps, batch * groups)
        y = y.view(batch, -1, *y.shape[2:])
    if bias is not None:
        y = y + bias.to(y.dtype).view(*bias.shape, *(1,) * dims)
    return y


def _conv_one(x: Tensor, weight: Tensor, bias: Tensor | None, steps: Steps, groups: int) -> Tensor:
    if weight.shape[2:] == (3, 3) and steps == ((1, 1), (1, 1), (1, 1)) and groups == 1:
        return conv3x3(x, weight, bias)
    return CONV[x.dim() - 2](x, weight, bias, *steps, groups)


def _matmul_per_sample(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], groups: int
) -> Tensor:
    if any(padding):
        x = F.pad(x, [p for size in reversed(padding) for p in (size, size)])
    if any(s != 1 for s in stride):
        x = x[(slice(None), slice(None), *(slice(None, None, s) for s in stride))]
    batch, out_channels, size = x.shape[0], weight.shape[1], x.shape[2:]
    if groups == 1 and is_channels_last(x):
        # (B, N, C) (B, C, O) -> (B, N, O)
        rows = torch.bmm(x.permute(0, 2, 3, 1).flatten(1, 2), weight.flatten(2).transpose(1, 2))
        return rows.view(batch, *size, out_channels).permute(0, 3, 1, 2)
    x = x.reshape(batch * groups, x.shape[1] // groups, -1)  # (B g, C/g, N)
    weight = weight.reshape(batch * groups, out_channels // groups, -1)  # (B g, O/g, C/g)
    return torch.bmm(weight, x).view(batch, out_channels, *size)


def _unfolded_per_sample(x: Tensor, weight: Tensor, steps: Steps, groups: int) -> Tensor:
    """As a sum over taps or a matrix product, for runtimes whose convolutions have fixed groups."""
    stride, padding, dilation = steps
    x = F.pad(x, [p for size in reversed(padding) for p in (size, size)])
    kernel_size = weight.shape[3:]
    sizes = [
        (n - d * (k - 1) - 1) // s + 1
        for n, k, s, d in zip(x.shape[2:], kernel_size, stride, dilation, strict=True)
    ]
    taps = []
    for tap in itertools.product(*map(range, kernel_size)):
        axes = zip(tap, sizes, stride, dilation, strict=True)
        of_tap = (slice(t * d, t * d + (n - 1) * s + 1, s) for t, n, s, d in axes)
        taps.append(x[(slice(None), slice(None), *of_tap)])  # (B, C, *s_out)
    batch, out_channels, per_group = weight.shape[0], weight.shape[1], weight.shape[2]
    if per_group == 1 and out_channels == groups:
        by_tap = weight.view(batch, out_channels, len(taps), *(1,) * len(sizes))
        y = taps[0] * by_tap[:, :, 0]
        for k, window in enumerate(taps[1:], 1):
            y = y + window * by_tap[:, :, k]
        return y
    unfolded = torch.stack(taps, dim=2).reshape(batch * groups, per_group * len(taps), -1)
    kernels = weight.reshape(batch * groups, out_channels // groups, -1)
    return torch.bmm(kernels, unfolded).view(batch, out_channels, *sizes)


def output_blocks(x: Tensor, kernel_shape: Sequence[int], groups: int) -> list[slice]:
    """Blocks of output channels whose kernels fit the cache from mixing to convolution.

    On CPU without gradients; gradients keep all kernels anyway. With several groups, all channels
    are one block. The shape is (O, C / groups, *k) of one sample's kernel.
    """
    whole = torch.is_grad_enabled() or torch.compiler.is_compiling() or groups > 1
    if whole or x.device.type != "cpu":
        return [slice(None)]
    out, *each = kernel_shape
    fitting = BLOCK // max(1, len(x) * math.prod(each))
    step = OUTPUTS * max(1, fitting // OUTPUTS)
    if step >= out:
        return [slice(None)]
    return [slice(start, start + step) for start in range(0, out, step)]


def is_channels_last(x: Tensor) -> bool:
    """Whether a map is channels_last in memory, and not contiguous as well."""
    return (
        not torch.compiler.is_exporting()  # where sizes, and so strides, are not known
        and x.dim() == 4
        and x.is_contiguous(memory_format=torch.channels_last)
        and not x.is_contiguous()
    )


def mix(
    coefficients: Float[Tensor, "b e *o"], experts: Float[Tensor, "e o *rest"]
) -> Float[Tensor, "b o *rest"]:
    r"""Mix experts for each sample: :math:`W_b = \sum_e c_{be} W_e`.

    Args:
        coefficients: (B, E), or (B, E, O) for one mixture per output channel.
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
    """Convolve every sample with every expert, as one convolution with E * O output channels."""
    num, out = experts.shape[:2]
    stacked = experts.unflatten(1, (groups, out // groups)).transpose(0, 1)  # (g, E, O/g, ...)
    stacked = stacked.flatten(0, 2)  # (g * E * O/g, C/g, *k)
    y = CONV[x.dim() - 2](x, stacked, None, stride, padding, dilation, groups)
    maps: Tensor = y.unflatten(1, (groups, num, out // groups))  # (B, g, E, O/g, *s)
    return maps.transpose(1, 2).flatten(2, 3)  # (B, E, O, *s)
