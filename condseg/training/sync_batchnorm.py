"""Batch norm over the global batch of all ranks, on any device."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning.pytorch.plugins.layer_sync import LayerSync
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import FunctionCtx
from torch.nn.modules.batchnorm import _BatchNorm

_STATE = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class _SumOverRanks(Function):
    """y = sum over ranks of x; so dL/dx = sum over ranks of dL/dy."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        y = x.clone()
        dist.all_reduce(y)
        return y

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> Tensor:
        grad = grads[0].clone()
        dist.all_reduce(grad)
        return grad


def _sum_over_ranks(x: Tensor) -> Tensor:
    apply: Callable[[Tensor], Tensor] = _SumOverRanks.apply  # typed in some versions of torch only
    return apply(x)


def global_batch_norm(norm: _BatchNorm, x: Tensor) -> Tensor:
    """Batch norm in training with the mean and variance of all ranks' samples.

    mean = sum(x) / n, var = sum((x - mean)^2) / n; the sums and n run over the global batch. The
    running variance uses n - 1, as torch's does. A single value (n = 1) has no variance: it is
    normalised by the running statistics, which do not change, as in :mod:`condseg.layers`.

    Args:
        norm: its parameters are used; its running statistics are updated.
        x: (B, C, *), this rank's part of the batch; B may differ between ranks.
    """
    dims = [d for d in range(x.ndim) if d != 1]
    shape = [1, -1] + [1] * (x.ndim - 2)
    x32 = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    count = x32.new_tensor([x.numel() / x.shape[1]])
    total = _sum_over_ranks(torch.cat([x32.sum(dims), count]))
    n = total[-1].detach()
    mean = total[:-1] / n
    var = _sum_over_ranks((x32 - mean.view(shape)).square().sum(dims)) / n
    if norm.running_mean is not None:
        mean, var = _track(norm, mean, var, n)
    y = (x32 - mean.view(shape)) * torch.rsqrt(var.view(shape) + norm.eps)
    if norm.affine:
        y = y * norm.weight.view(shape) + norm.bias.view(shape)
    return y.to(x.dtype)


def _track(norm: _BatchNorm, mean: Tensor, var: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    """Updates the running statistics; returns the mean and variance for normalisation.

    There is no branch on ``n``, which would synchronise a GPU.
    """
    running_mean, running_var, batches = (
        norm.running_mean,
        norm.running_var,
        norm.num_batches_tracked,
    )
    assert running_mean is not None
    assert running_var is not None
    assert batches is not None
    several = n > 1
    old_mean, old_var = running_mean.clone(), running_var.clone()
    with torch.no_grad():
        batches.add_(several)
        momentum = 1 / batches.clamp(min=1) if norm.momentum is None else norm.momentum
        unbiased = var * n / (n - 1).clamp(min=1)
        running_mean.add_((mean - running_mean) * momentum * several)
        running_var.add_((unbiased - running_var) * momentum * several)
    return torch.where(several, mean, old_mean), torch.where(several, var, old_var)


class GlobalBatchNorm(_BatchNorm):
    """``nn.BatchNorm`` whose training statistics are those of the global batch.

    Args:
        norm: its parameters, buffers and children are used. Children are applied after the norm,
            in their order: in timm's norms, the activation.

    Shape:
        (B, C, *) -> (B, C, *); in evaluation as ``nn.BatchNorm``.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(
            norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
        )
        for name in _STATE:
            setattr(self, name, getattr(norm, name))
        for name, child in norm.named_children():
            self.add_module(name, child)
        self.train(norm.training)

    def forward(self, input: Tensor) -> Tensor:
        if self.training:
            y = global_batch_norm(self, input)
        else:
            mean, var = self.running_mean, self.running_var
            y = F.batch_norm(input, mean, var, self.weight, self.bias, mean is None, 0.0, self.eps)
        for child in self.children():
            y = child(y)
        return y


class SyncBatchNorm(LayerSync):
    """Replaces the batch norms of a model by synchronised ones while it trains on several ranks.

    torch's batch norms on CUDA become ``nn.SyncBatchNorm``; it supports neither the CPU nor timm's
    activations, so other norms become :class:`GlobalBatchNorm`. State-dict keys stay the same.
    """

    def __init__(self) -> None:
        self._originals: list[tuple[nn.Module, str, nn.Module]] = []

    def apply(self, model: nn.Module) -> nn.Module:
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, _BatchNorm) and not isinstance(child, nn.SyncBatchNorm):
                    self._originals.append((parent, name, child))
                    setattr(parent, name, _synchronised(child))
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        while self._originals:
            parent, name, original = self._originals.pop()
            current = getattr(parent, name)
            for tensor in _STATE:
                setattr(original, tensor, getattr(current, tensor))
            setattr(parent, name, original.train(current.training))
        return model


def _synchronised(norm: _BatchNorm) -> nn.Module:
    if type(norm) in _PLAIN and norm.weight is not None and norm.weight.is_cuda:
        module: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(norm)
        return module
    return GlobalBatchNorm(norm)
