"""Choosing the device of a prediction."""

from __future__ import annotations

import os

import torch

_ALLOWED = "auto, cpu, cuda, cuda:1, mps are allowed"


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name; "auto" is CUDA, then Apple's GPU, then the CPU.

    Under torchrun, "auto" and "cuda" are the GPU of the process's local rank.

    Raises:
        ValueError: the name is unknown, or this machine has no such device.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if name == "auto":
        other = "mps" if torch.backends.mps.is_available() else "cpu"
        name = "cuda" if torch.cuda.is_available() else other
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device is {name!r}; {_ALLOWED}") from error
    if device.type == "cuda":
        device = torch.device("cuda", local_rank if device.index is None else device.index)
        count = torch.cuda.device_count()
        if device.index >= count:
            raise ValueError(f"device is {name!r}; this machine has {count} CUDA devices")
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device is 'mps'; this machine has none")
    elif device.type not in ("cpu", "mps"):
        raise ValueError(f"device is {name!r}; {_ALLOWED}")
    return device
