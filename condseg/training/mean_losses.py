"""Means of losses over a validation set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch.distributed as dist
from torch import Tensor


class MeanLosses:
    """The mean of each loss over the images of all batches and ranks."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._images = 0

    def update(self, losses: Mapping[str, Tensor], images: int) -> None:
        """Adds the losses of a batch, each a mean over its number of images."""
        for name, loss in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + images * loss.detach().double()
        self._images += images

    def compute(self) -> dict[str, float]:
        """The means, the same on all ranks, also on one that had no images."""
        sums = {name: float(value) for name, value in self._sums.items()}
        parts = [(sums, self._images)]
        if dist.is_available() and dist.is_initialized():
            parts = parts * dist.get_world_size()
            dist.all_gather_object(parts, (sums, self._images))
        total: Counter[str] = Counter()
        for part, _ in parts:
            total.update(part)
        images = sum(count for _, count in parts)
        return {name: value / images for name, value in total.items()}
