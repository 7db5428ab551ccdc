"""Counts what a GPU would have to do: kernels, and the times that the host waits for it."""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import ExitStack
from functools import wraps
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = {
    "_local_scalar_dense", "nonzero", "masked_select", "_unique", "_unique2", "unique_dim",
    "unique_consecutive", "bincount", "histc", "equal", "is_nonzero", "nms",
}  # fmt: skip
"""Operators whose output's shape, or whose output on the host, depends on values. torchvision's
NMS ends with one on CUDA."""
NO_KERNEL = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "detach_",
    "_unsafe_view", "lift_fresh", "unsafe_split", "set_",
}  # fmt: skip
COPIES = (
    *((Tensor, name) for name in ("cpu", "tolist", "numpy", "new_tensor")),
    *((torch, name) for name in ("tensor", "as_tensor", "from_numpy")),
)
"""Functions that copy from or to the host, which are no operators for tensors on the CPU."""


def use_device_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """Computes tensors on the CPU as if they were on a GPU."""
    replaced = {
        "is_asynchronous": lambda _: True,
        "start_copy": lambda *tensors: lambda: list(tensors),  # by itself it does not wait
    }
    for module in [m for name, m in sys.modules.items() if name.startswith("condseg.")]:
        for name in replaced.keys() & vars(module).keys():
            monkeypatch.setattr(module, name, replaced[name])


class Counts(TorchDispatchMode):
    """Counts, inside a context, operators as if the tensors were on a GPU.

    Attributes:
        launches: operators that run a kernel, by name; views and allocations do not.
        waits: those for which the host waits, by name, with copies from and to the host.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches, self.waits = Counter[str](), Counter[str]()
        self._patches = ExitStack()

    def __enter__(self) -> Counts:
        for owner, name in COPIES:
            patch = mock.patch.object(owner, name, self._counted(getattr(owner, name), name))
            self._patches.enter_context(patch)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.close()

    def _counted(self, function: Any, name: str) -> Any:
        @wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.waits[name] += "pin_memory" not in kwargs
            return function(*args, **kwargs)

        return counted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        result = func(*args, **kwargs)
        if name in WAITS or (name == "repeat_interleave" and kwargs.get("output_size") is None):
            self.waits[name] += 1
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            index = [i for i in args[1] if isinstance(i, Tensor)]
            self.waits[f"{name} by booleans"] += sum(i.dtype == torch.bool for i in index)
        if name in ("_to_copy", "copy_") and _crosses(name, args, result):
            self.waits[f"{name} between devices"] += 1
        is_view = any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)
        if not (is_view or name in NO_KERNEL):
            self.launches[name] += 1
        return result


def _crosses(name: str, args: Any, result: Tensor) -> bool:
    source = args[1] if name == "copy_" else args[0]
    return bool(source.device != result.device)
