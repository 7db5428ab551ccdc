"""The order of elements inside groups, of any number and size at once."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def ranks(group: Int64[Tensor, " n"]) -> tuple[Int64[Tensor, " n"], Int64[Tensor, " n"]]:
    """Position of each element in its group, and of the group's first one; groups ascend."""
    first = torch.searchsorted(group, group)
    return torch.arange(len(group), device=group.device) - first, first


def by_group(group: Int64[Tensor, " n"], scores: Float[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """Indices that sort by group, inside a group by descending score; the first of equal ones."""
    order = scores.argsort(descending=True, stable=True)
    return order[group[order].argsort(stable=True)]
