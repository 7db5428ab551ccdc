"""Counts what the batches of a training lack."""

from __future__ import annotations

import logging
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info

from condseg.structures import Batch

log = logging.getLogger("lightning.pytorch")  # on each rank


class Skipped:
    """Counts lost objects and replaced images by epoch, and names each broken image once.

    Attributes:
        named: messages of the broken images that were named.
    """

    def __init__(self) -> None:
        self.named: set[str] = set()
        self._epoch, self._lost_objects, self._replaced_images = 0, 0, 0

    def name_broken(self, batch: Batch) -> None:
        """Logs why images of the batch are broken, if it is the first time."""
        for message in batch.broken:
            if message not in self.named:
                self.named.add(message)
                log.warning(f"broken image, skipped: {message}")

    def count(self, batch: Batch, epoch: int, strategy: Any) -> None:
        """Adds a training batch; logs the counts of the epoch before, if it has ended."""
        if epoch != self._epoch:
            self.log(strategy)
            self._epoch = epoch
        self._lost_objects += batch.lost_objects
        self._replaced_images += len(batch.broken)

    def log(self, strategy: Any) -> None:
        """Logs the counts of all ranks, and starts from 0."""
        lost, replaced = self._on_all_ranks(strategy)
        if lost:
            rank_zero_info(
                f"epoch {self._epoch}: {lost} objects skipped, since no pixel of them was left "
                "after cropping and resizing"
            )
        if replaced:
            rank_zero_info(f"epoch {self._epoch}: {replaced} broken images replaced by others")
        self._lost_objects = self._replaced_images = 0

    def state(self, strategy: Any) -> dict[str, int]:
        """The counts of all ranks."""
        lost, replaced = self._on_all_ranks(strategy)
        return {"epoch": self._epoch, "lost_objects": lost, "replaced_images": replaced}

    def load_state(self, state: dict[str, int], is_global_zero: bool) -> None:
        """Continues from :meth:`state`, on one of the ranks."""
        self._epoch = state["epoch"]
        self._lost_objects = state["lost_objects"] if is_global_zero else 0
        self._replaced_images = state.get("replaced_images", 0) if is_global_zero else 0

    def _on_all_ranks(self, strategy: Any) -> list[int]:
        counts = [self._lost_objects, self._replaced_images]
        total = strategy.reduce(torch.tensor(counts, device=strategy.root_device), reduce_op="sum")
        return [int(count) for count in total.tolist()]
