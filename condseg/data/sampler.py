"""Which pictures make up which batch, as a pure function of seed and step."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from torch.utils.data import Sampler

from condseg.data.coco import Key


class GlobalBatchSampler(Sampler[list[Key]]):
    """An endless row of global batches, of which each rank takes its share.

    Step t belongs to epoch t // len and is there batch t % len, len = n // batch_size; each
    epoch shuffles anew by (seed, epoch). Rank r of R takes the items r, r + R, ... of a global
    batch. So R processes see together the batches that one sees. Iterating starts at the step
    that ``position`` tells at that moment and gives ``len`` batches: a run that goes on from a
    checkpoint only has to know how many batches it trained on, wherever in an epoch it broke
    off and however many were fetched ahead.

    Args:
        count: n, pictures in the dataset.
        batch_size: pictures of a global batch, over all ranks.
        seed: of the order.
        rank: of this process.
        world_size: R, number of processes.
        position: tells the next global step.
        groups: (n,) small integers; pictures of different groups share a batch only where too
            few are left. Used to keep upright and lying pictures apart, which saves padding.

    Raises:
        ValueError: ``batch_size`` is no multiple of the processes or above n.
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
                f"batch_size is {batch_size}, the batch over all processes; allowed are multiples "
                f"of the {world_size} processes"
            )
        if not 1 <= batch_size <= count:
            raise ValueError(f"batch_size is {batch_size}; 1..{count} (pictures) is allowed")
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
        # A batch stands where its last picture was drawn, those of mixed groups at the end.
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


class Shard(Sampler[int]):
    """Every R-th picture from the r-th on: each exactly once over all ranks, none repeated.

    Args:
        count: pictures in the dataset.
        rank: r, of this process.
        world_size: R, number of processes.
    """

    def __init__(self, count: int, rank: int = 0, world_size: int = 1) -> None:
        self.indices = range(rank, count, world_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)
