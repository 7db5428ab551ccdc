"""The images of each batch, as a function of seed and step."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from torch.utils.data import Sampler

Key = tuple[int, int]
"""(position in the dataset, epoch)."""


class GlobalBatchSampler(Sampler[list[Key]]):
    """Global batches of shuffled images, of which each rank takes its part.

    Step t is batch t % len of epoch t // len, with len = n // batch_size; (seed, epoch) determine
    the order. Rank r of R takes the items r, r + R, ... of a global batch, so that R processes
    together see the batches that one process sees. An iterator yields ``len`` batches from the
    step ``position()`` on: a resumed run only has to know the number of batches it trained on,
    whichever were fetched ahead.

    Args:
        count: n, number of images.
        batch_size: images of a global batch, over all ranks.
        seed: of the order.
        rank, world_size: r, of this process, and R.
        position: returns the next global step.
        groups: (n,) small integers; images of different groups share a batch only if too few
            are left. Portrait and landscape images in separate batches need less padding.

    Raises:
        ValueError: ``batch_size`` is not a multiple of the number of processes, or above n.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        position: Callable[[], int] = lambda: 0,
        groups: np.ndarray | None = None,
    ) -> None:
        if batch_size % world_size:
            raise ValueError(
                f"batch_size is {batch_size}, over all processes; allowed are multiples of their "
                f"number {world_size}"
            )
        if not 1 <= batch_size <= count:
            raise ValueError(f"batch_size is {batch_size}; allowed is 1..{count} (images)")
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.position = position
        self.groups = np.zeros(count, dtype=np.int64) if groups is None else groups
        assert self.groups.shape == (count,)

    def __len__(self) -> int:
        return self.count // self.batch_size

    def __iter__(self) -> Iterator[list[Key]]:
        start = self.position()
        epoch, batches = -1, np.empty(0)
        for step in range(start, start + len(self)):
            if step // len(self) != epoch:
                epoch = step // len(self)
                batches = self.batches(epoch)
            mine = batches[step % len(self)][self.rank :: self.world_size]
            yield [(int(index), epoch) for index in mine]

    def batches(self, epoch: int) -> np.ndarray:
        """All global batches of an epoch, (len, batch_size) positions in the dataset."""
        order = np.random.default_rng((self.seed, epoch)).permutation(self.count)
        # A batch is placed where its last image was drawn; those of mixed groups come last.
        batches: list[tuple[int, np.ndarray]] = []
        rest: list[int] = []
        for group in np.unique(self.groups):
            places = np.flatnonzero(self.groups[order] == group)
            full = len(places) // self.batch_size * self.batch_size
            batches += [(int(p[-1]), p) for p in places[:full].reshape(-1, self.batch_size)]
            rest += places[full:].tolist()
        batches.sort(key=lambda batch: batch[0])
        places = np.concatenate([p for _, p in batches] + [np.sort(np.array(rest, dtype=np.int64))])
        return order[places[: len(self) * self.batch_size].reshape(-1, self.batch_size)]
