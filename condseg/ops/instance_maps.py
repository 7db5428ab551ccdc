"""Runs each instance's small network at every pixel; backward computes all but the result again.

Two forms: tiles for the caches of a CPU, and few kernels of many instances for other devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from condseg.ops.device import CHUNK_BYTES
from condseg.ops.masks import aligned_upsample, upsample_adjoint, upsample_into
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
    r"""Run each instance's layers on its image's pixels and up-sample the output.

    .. math:: z_1 = W_1 s, \qquad z_l = W_l\,\mathrm{ReLU}(z_{l-1}) + b_l

    No intermediate map is ever whole in memory. Every layer is one batched product, the first one
    of pixels that all instances share, in tiles of pixels and instances that are small enough for
    the cache; backward computes each tile again.

    Args:
        shared: input (B, K, N) of all instances of an image, its N = height * width pixels in
            row-major order.
        counts: number of instances of each of the B images, whose instances are consecutive.
        first: weights (P, O, K) of the first layer; its bias is the weight of a constant input 1.
        later: weight (P, out, in) and bias (P, out) of each further layer; the last has one output.
        size: (height, width).
        factor: of :func:`condseg.ops.masks.aligned_upsample`.
    """
    apply: Callable[..., Tensor] = _InstanceMaps.apply
    return apply(shared, counts, size, factor, first, *later)


def whole_instance_maps(
    shared: Float[Tensor, "b k n"],
    image: Int64[Tensor, " p"],
    first: Float[Tensor, "p o k"],
    later: Sequence[Float[Tensor, "p ..."]],
    size: Size,
    factor: int,
) -> Float[Tensor, "p h w"]:
    """:func:`instance_maps` of instances in any order, with whole maps of as many as memory allows.

    No shape depends on a value. ``image`` is the index of each instance's image; the other
    arguments are those of :func:`instance_maps`.
    """

    def maps(image: Tensor, first: Tensor, *later: Tensor) -> Tensor:
        x = torch.bmm(first, shared[image])  # (I, O, N)
        for weight, bias in zip(later[::2], later[1::2], strict=True):
            x = torch.baddbmm(bias[..., None], weight, F.relu(x))
        return x.squeeze(1)

    if torch.compiler.is_compiling():
        results = maps(image, first, *later)
    else:
        _, outputs, inputs = first.shape
        of_one = shared.element_size() * shared.shape[2] * (inputs + 2 * outputs)
        step = max(1, CHUNK_BYTES // of_one)
        parts = zip(*(x.split(step) for x in (image, first, *later)), strict=True)
        if torch.is_grad_enabled():
            again = partial(checkpoint, maps, use_reentrant=False, preserve_rng_state=False)
            chunks = [again(*part) for part in parts]
        else:
            chunks = [maps(*part) for part in parts]
        results = torch.cat(chunks) if len(chunks) > 1 else chunks[0]
    return aligned_upsample(results.unflatten(1, size), factor)


class _InstanceMaps(torch.autograd.Function):
    @staticmethod
    def forward(
        shared: Tensor, counts: Sequence[int], size: Size, factor: int, *layers: Tensor
    ) -> Tensor:
        height, width = size
        maps = shared.new_empty(len(layers[0]), factor * height, factor * width)
        for image, rows in _chunks(counts):
            own = [layer[rows] for layer in layers]
            logits = shared.new_empty(len(own[0]), height * width)
            for pixels in _tiles(shared, own[0]):
                logits[:, pixels] = _activations(shared[image, :, pixels], own)[-1].squeeze(1)
            upsample_into(logits.view(-1, height, width), factor, maps[rows])
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
            grad_logits = upsample_adjoint(grad_maps[rows], ctx.factor).flatten(1)  # (I, N)
            for pixels in _tiles(shared, own[0]):
                x = shared[image, :, pixels]  # (K, T)
                grad = grad_logits[:, None, pixels]  # (I, 1, T), of the last layer's output
                inputs = _activations(x, own)
                for i in range(len(own) - 2, 0, -2):  # weights at i, biases at i + 1
                    before = inputs[i // 2]  # (I, in, T)
                    own_grads[i].baddbmm_(grad, before.transpose(1, 2))  # (I, out, in)
                    own_grads[i + 1].add_(grad.sum(2))  # (I, out)
                    back = own[i].transpose(1, 2)  # (I, in, out)
                    grad = back * grad if back.shape[2] == 1 else torch.bmm(back, grad)
                    grad = torch.ops.aten.threshold_backward(grad, before, 0)  # (I, in, T)
                rows_of_all = grad.flatten(0, 1)  # (I O, T)
                own_grads[0].flatten(0, 1).addmm_(rows_of_all, x.T)  # (I O, K)
                grad_shared[image, :, pixels].addmm_(own[0].flatten(0, 1).T, rows_of_all)  # (K, T)
        return grad_shared, None, None, None, *grads


def _activations(x: Tensor, layers: Sequence[Tensor]) -> list[Tensor]:
    """Input (I, channels, T) of each later layer, after ReLU, and the last layer's output."""
    first = layers[0]
    values = [torch.bmm(first, x.expand(len(first), -1, -1))]
    for weight, bias in zip(layers[1::2], layers[2::2], strict=True):
        values.append(torch.baddbmm(bias[..., None], weight, values[-1].relu_()))
    return values


def _chunks(counts: Sequence[int]) -> Iterator[tuple[int, slice]]:
    """Image and instances of each chunk."""
    start = 0
    for image, count in enumerate(counts):
        for offset in range(0, count, INSTANCES):
            yield image, slice(start + offset, start + min(offset + INSTANCES, count))
        start += count


def _tiles(shared: Tensor, first: Tensor) -> Iterator[slice]:
    """Pixels of each tile, such that a hidden layer fits a core's cache."""
    step = max(1, 3 * 2**17 // (first.shape[0] * first.shape[1]))
    return (slice(start, start + step) for start in range(0, shared.shape[2], step))
