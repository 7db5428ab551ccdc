"""A tiny network of its own for each instance at every pixel: in tiles, recomputed backward."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from condseg import native
from condseg.ops.masks import upsample_adjoint, upsample_quickly
from condseg.structures import Size

INSTANCES = 32  # of a tile


def instance_maps(
    shared: Float[Tensor, "b k n"],
    counts: Sequence[int],
    first: Float[Tensor, "p o k"],
    later: Sequence[Float[Tensor, "p ..."]],
    size: Size,
    factor: int,
) -> Float[Tensor, "p h w"]:
    r"""Run each instance's layers on its picture's pixels and up-sample what comes out.

    .. math:: z_1 = W_1 s, \qquad z_l = W_l\,\mathrm{ReLU}(z_{l-1}) + b_l

    Nothing between input and output is ever whole in memory: a loop in C++ takes a few pixels of an
    instance through all layers. Backward, and without that loop, every layer is one batched
    product, the first one of pixels that all instances share, in tiles of pixels and instances
    that are small enough for the cache; backward computes each tile again.

    Args:
        shared: what all instances of a picture read, the pixels of a map in one row.
        counts: instances of each of the B pictures; those of a picture are neighbours.
        first: weights of the first layer; its bias is that of an input that is 1.
        later: weight (P, out, in) and bias (P, out) of each further layer; the last has one output.
        size: (height, width) of the pixels, N = height * width.
        factor: whole number, see :func:`condseg.ops.masks.aligned_upsample`.

    Shape:
        -> (P, factor * height, factor * width).
    """
    apply: Callable[..., Tensor] = _InstanceMaps.apply
    return apply(shared, counts, size, factor, first, *later)


class _InstanceMaps(torch.autograd.Function):
    @staticmethod
    def forward(
        shared: Tensor, counts: Sequence[int], size: Size, factor: int, *layers: Tensor
    ) -> Tensor:
        height, width = size
        if native.supports(shared):
            fused: Tensor = torch.ops.condseg.mask_head(shared, counts, size, factor, layers)
            return fused
        maps = shared.new_empty(len(layers[0]), factor * height, factor * width)
        for image, rows in _chunks(counts):
            own = [layer[rows] for layer in layers]
            logits = shared.new_empty(len(own[0]), height * width)
            for pixels in _tiles(shared, own[0]):
                logits[:, pixels] = _activations(shared[image, :, pixels], own)[-1].squeeze(1)
            upsample_quickly(logits.view(-1, height, width), factor, maps[rows])
        return maps

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        shared, ctx.counts, ctx.size, ctx.factor, *layers = inputs
        ctx.save_for_backward(shared, *layers)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_maps: Tensor) -> tuple[Any, ...]:
        shared, *layers = ctx.saved_tensors
        grad_shared = torch.zeros_like(shared)
        grads = [torch.zeros_like(layer) for layer in layers]
        for image, rows in _chunks(ctx.counts):
            own, own_grads = [layer[rows] for layer in layers], [grad[rows] for grad in grads]
            grad_logits = upsample_adjoint(grad_maps[rows], ctx.factor).flatten(1)
            for pixels in _tiles(shared, own[0]):
                x, grad = shared[image, :, pixels], grad_logits[:, None, pixels]
                inputs = _activations(x, own)
                for i in range(len(own) - 2, 0, -2):
                    before = inputs[i // 2]
                    own_grads[i].baddbmm_(grad, before.transpose(1, 2))
                    own_grads[i + 1].add_(grad.sum(2))
                    back = own[i].transpose(1, 2)
                    grad = back * grad if back.shape[2] == 1 else torch.bmm(back, grad)
                    grad = torch.ops.aten.threshold_backward(grad, before, 0)
                rows_of_all = grad.flatten(0, 1)
                own_grads[0].flatten(0, 1).addmm_(rows_of_all, x.T)
                grad_shared[image, :, pixels].addmm_(own[0].flatten(0, 1).T, rows_of_all)
        return grad_shared, None, None, None, *grads


def _layer_sizes(first: Sequence[int], later: Sequence[Sequence[int]]) -> list[int]:
    """Channels of the input and of what each layer gives."""
    return [first[2], first[1], *(shape[1] for shape in later[::2])]


def _products(
    shared: Sequence[int],
    counts: Sequence[int],
    size: Sequence[int],
    factor: int,
    layers: Sequence[Sequence[int]],
) -> int:
    channels = _layer_sizes(layers[0], layers[1:])
    return layers[0][0] * shared[2] * sum(math.prod(pair) for pair in itertools.pairwise(channels))


@native.operator(
    "mask_head(Tensor shared, int[] counts, int[] size, int factor, Tensor[] layers) -> Tensor",
    lambda shared, counts, size, factor, layers: shared.new_empty(
        len(layers[0]), factor * size[0], factor * size[1]
    ),
    _products,
)
def _mask_head(
    shared: Tensor, counts: list[int], size: list[int], factor: int, layers: list[Tensor]
) -> Tensor:
    maps = shared.new_empty(len(layers[0]), factor * size[0], factor * size[1])
    channels = _layer_sizes(layers[0].shape, [layer.shape for layer in layers[1:]])
    widest = max(channels)
    native.call(
        "mask_head",
        shared.contiguous(),
        [layers[0].contiguous(), None, *(layer.contiguous() for layer in layers[1:])],
        channels[1:],
        counts,
        maps,
        native.scratch("mask_head", shared.shape[2], widest),
        *(len(channels) - 1, len(shared), channels[0], *size, factor, widest),
    )
    return maps


def _activations(x: Tensor, layers: Sequence[Tensor]) -> list[Tensor]:
    """What enters each later layer, (I, channels, T) after ReLU, and last what leaves the last."""
    first = layers[0]
    values = [torch.bmm(first, x.expand(len(first), -1, -1))]
    for weight, bias in zip(layers[1::2], layers[2::2], strict=True):
        values.append(torch.baddbmm(bias[..., None], weight, values[-1].relu_()))
    return values


def _chunks(counts: Sequence[int]) -> Iterator[tuple[int, slice]]:
    """Picture and instances of each chunk."""
    start = 0
    for image, count in enumerate(counts):
        for offset in range(0, count, INSTANCES):
            yield image, slice(start + offset, start + min(offset + INSTANCES, count))
        start += count


def _tiles(shared: Tensor, first: Tensor) -> Iterator[slice]:
    """Pixels of each tile: a hidden layer fits a core's cache, or keeps a GPU busy."""
    numbers = 3 * 2**17 if shared.device.type == "cpu" else 2**26
    step = max(1, numbers // (first.shape[0] * first.shape[1]))
    return (slice(start, start + step) for start in range(0, shared.shape[2], step))
