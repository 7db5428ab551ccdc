"""Devices that compute while the host goes on, and copies to and from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

CHUNK_BYTES = 2**31
"""Working memory of a part of the work on such a device."""


def is_asynchronous(x: Tensor) -> bool:
    """Whether the device of a tensor computes while the host goes on, as all but the CPU do.

    There, a kernel costs the host a few microseconds and reading a value costs the rest of the
    queue, so a whole batch is computed at once, in as few kernels as memory allows. On the CPU
    neither costs anything, and small parts stay in its caches.
    """
    return x.device.type != "cpu"


def to_device(values: Sequence[Sequence[int | float]], like: Tensor) -> Tensor:
    """A small table of numbers, with the type and on the device of ``like``, without waiting."""
    table = torch.tensor(values, dtype=like.dtype, pin_memory=like.device.type == "cuda")
    return table.to(like.device, non_blocking=True)


def to_host(*tensors: Tensor) -> list[Tensor]:
    """The tensors on the CPU; waits once for all of them."""
    return start_copy(*tensors)()


def start_copy(*tensors: Tensor) -> Callable[[], list[Tensor]]:
    """Starts to copy tensors to the CPU; the result waits for the copies and returns them."""
    device = tensors[0].device
    if device.type != "cuda":
        copies = [x.cpu() for x in tensors]
        return lambda: copies
    copies = [torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for x in tensors]
    for copy, x in zip(copies, tensors, strict=True):
        copy.copy_(x, non_blocking=True)
    done = torch.cuda.Event()
    done.record(torch.cuda.current_stream(device))

    def wait() -> list[Tensor]:
        done.synchronize()
        return copies

    return wait
