"""A list that worker processes share."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from typing import Any

import torch


class SharedList:
    """Python values pickled into one tensor.

    A forked worker reads the parent's memory pages, which no reference count changes; torch
    passes the tensor to a spawned worker through shared memory. Either way there is one copy.
    """

    def __init__(self, values: Iterable[Any]) -> None:
        data, ends = bytearray(), [0]
        for value in values:
            data += pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
            ends.append(len(data))
        self._ends = torch.tensor(ends)
        self._data = torch.frombuffer(data, dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> Any:
        start, end = self._ends[index : index + 2].tolist()
        return pickle.loads(self._data[start:end].numpy().data)
