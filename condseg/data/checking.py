"""All images of a set, read before the training."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from rich.console import Console
from rich.progress import Progress
from torch.utils.data import DataLoader, Dataset

from condseg.data.dataset import CocoDataset


class _Problems(Dataset[str]):
    """Why each image cannot be read; "" if it can."""

    def __init__(self, dataset: CocoDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> str:
        try:
            self.dataset.read(index)
        except ValueError as error:
            return str(error)
        return ""


def broken_images(
    dataset: CocoDataset, rank: int, world_size: int, workers: dict[str, Any]
) -> list[str]:
    """Reads all images (and depth maps) of a set, each process its part, with a progress bar.

    Args:
        dataset: the set.
        rank, world_size: of this process, and their number.
        workers: arguments of the DataLoader.

    Returns:
        One message for each image that cannot be read, the same on all processes.
    """
    mine = range(rank, len(dataset), world_size)
    batches = DataLoader(_Problems(dataset), batch_size=8, sampler=mine, collate_fn=list, **workers)
    with Progress(console=Console(stderr=True), disable=rank > 0) as progress:
        task = progress.add_task(
            f"reading images of {dataset.annotation_file.name}", total=len(mine)
        )
        problems = []
        for batch in batches:
            problems += [problem for problem in batch if problem]
            progress.advance(task, len(batch))
    if world_size == 1:
        return problems
    parts: list[list[str]] = [[] for _ in range(world_size)]
    dist.all_gather_object(parts, problems)
    return [problem for part in parts for problem in part]
