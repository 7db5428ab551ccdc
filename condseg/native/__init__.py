"""C++ kernels for the CPU, compiled on first use (:mod:`condseg.native.build`).

Each kernel is a PyTorch operator, ``torch.ops.condseg.*``, for contiguous float32 on the CPU,
without autograd; its FLOPs are registered with PyTorch's counter. Callers compute the same in
plain PyTorch where :func:`supports` is false.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, library
from torch.utils.flop_counter import register_flop_formula

from condseg.native.build import load_library

Function = TypeVar("Function", bound=Callable[..., Any])
_operators = library.Library("condseg", "DEF")


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def available() -> bool:
    """Whether the kernels run here: on Linux, with AVX2 and a compiler that supports OpenMP."""
    return load_library() is not None


def supports(tensor: Tensor) -> bool:
    """Whether the kernels run on such a tensor: float32, on the CPU."""
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32 and available()


def operator(
    signature: str, outputs: Callable[..., Any], multiply_adds: Callable[..., int]
) -> Callable[[Function], Function]:
    """Register a function as the PyTorch operator ``torch.ops.condseg.<name>``.

    Args:
        signature: in PyTorch's schema language.
        outputs: function of the same arguments that returns empty tensors like the outputs.
        multiply_adds: function of the same arguments, with shapes for tensors.
    """
    name = signature.partition("(")[0]

    def register(function: Function) -> Function:
        _operators.define(signature)
        _operators.impl(name, function, "CPU")
        library.register_fake(f"condseg::{name}", outputs, lib=_operators)

        def flops(*shapes: Any, out_shape: Any = None, **options: Any) -> int:
            return 2 * multiply_adds(*shapes, **options)

        register_flop_formula(getattr(torch.ops.condseg, name))(flops)
        return function

    return register


def call(name: str, *arguments: Tensor | Sequence[int] | int | None) -> None:
    """Call a function of the library; the number of threads is appended to the arguments."""
    getattr(load_library(), name)(*map(_argument, arguments), _argument(torch.get_num_threads()))


def scratch(name: str, *arguments: int) -> Tensor:
    """Working memory for a function."""
    threads = torch.get_num_threads()
    size = getattr(load_library(), f"{name}_scratch")
    size.restype = ctypes.c_int64
    return torch.empty(size(*map(_argument, (*arguments, threads))))


def _argument(value: Tensor | Sequence[int] | int | None) -> Any:
    if value is None:
        return ctypes.c_void_p(None)
    if isinstance(value, int):
        return ctypes.c_int64(value)
    if isinstance(value, Tensor):
        assert value.is_contiguous()
        assert value.dtype == torch.float32
        return ctypes.c_void_p(value.data_ptr())
    return (ctypes.c_int64 * len(value))(*value)
