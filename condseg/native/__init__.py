"""C++ kernels for the CPU, compiled on first use.

A C++ compiler (``$CXX``, or ``c++``) builds a library of the sources beside this file in a few
seconds; it is kept in ``$XDG_CACHE_HOME/condseg`` (or ``~/.cache/condseg``). Each kernel is a
PyTorch operator, ``torch.ops.condseg.*``, for contiguous float32 on the CPU, without autograd; its
FLOPs are registered with PyTorch's counter. Callers compute the same in plain PyTorch where
:func:`supports` is false.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, library
from torch.utils.flop_counter import register_flop_formula

log = logging.getLogger(__name__)

SOURCES = Path(__file__).parent
ARCHITECTURES = {"AVX2": "x86-64-v3", "AVX512": "x86-64-v4"}  # what PyTorch finds -> GCC's name
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fno-math-errno")

Function = TypeVar("Function", bound=Callable[..., Any])
_operators = library.Library("condseg", "DEF")


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def available() -> bool:
    """Whether the kernels run here: on Linux, with AVX2 and a compiler that supports OpenMP."""
    return _library() is not None


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
    getattr(_library(), name)(*map(_argument, arguments), _argument(torch.get_num_threads()))


def scratch(name: str, *arguments: int) -> Tensor:
    """Working memory for a function."""
    threads = torch.get_num_threads()
    size = getattr(_library(), f"{name}_scratch")
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


@functools.cache
def _library() -> ctypes.CDLL | None:
    architecture = ARCHITECTURES.get(torch.backends.cpu.get_cpu_capability())
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    if sys.platform != "linux" or architecture is None or shutil.which(compiler[0]) is None:
        log.info(
            "no C++ kernels: they need Linux, a processor with AVX2 and a C++ compiler (CXX); "
            "PyTorch computes the same more slowly"
        )
        return None
    try:
        return ctypes.CDLL(str(_compiled([*compiler, *FLAGS, f"-march={architecture}"])))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or error
        log.warning("no C++ kernels, PyTorch computes the same more slowly: %s", reason)
        return None


def _compiled(command: Sequence[str]) -> Path:
    """The library of these sources, compiled unless it is in the cache."""
    files = sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h")])
    digest = hashlib.sha256(shlex.join(command).encode())
    for file in files:
        digest.update(file.read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "condseg"
    built = cache / f"{digest.hexdigest()[:16]}.so"
    if not built.exists():
        log.info("compiling the C++ kernels in %s", SOURCES)
        cache.mkdir(parents=True, exist_ok=True)
        sources = [str(file) for file in files if file.suffix == ".cpp"]
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            run = functools.partial(
                subprocess.run, cwd=folder, check=True, capture_output=True, text=True
            )
            # Linked without OpenMP: PyTorch's is loaded already, and a second one would have
            # threads of its own.
            run([*command, "-fopenmp", "-c", *sources])
            run([*command, "-shared", *map(str, Path(folder).glob("*.o")), "-o", built.name])
            (Path(folder) / built.name).replace(built)
    return built
