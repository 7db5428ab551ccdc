"""Communication between ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def mean_over_ranks(value: Tensor) -> Tensor:
    """Mean of a (detached) value over all ranks; the value itself without a process group.

    A loss summed on each rank and divided by the mean count equals, after the gradients are
    averaged over the ranks, the loss of the global batch divided by its total count. Without
    gradients, as in validation, each rank keeps its own value: ranks may have different numbers of
    batches there.
    """
    if not torch.is_grad_enabled() or not (dist.is_available() and dist.is_initialized()):
        return value.detach()
    if dist.get_world_size() == 1:
        return value.detach()
    total = value.detach().clone().to(torch.float32)
    dist.all_reduce(total)
    return total / dist.get_world_size()
