"""Loops in C++ for which PyTorch has no quick form, compiled on the machine that runs them.

Where they are first wanted, a C++ compiler (``$CXX``, or ``c++``) makes a library of the sources
beside this file, in a few seconds, and keeps it in ``$XDG_CACHE_HOME/condseg`` (or
``~/.cache/condseg``). Each loop is an operator of PyTorch, ``torch.ops.condseg.*``, for contiguous
float32 on the CPU, without gradients of its own; its FLOPs are known to PyTorch's counter. Whoever
calls one has the same in plain PyTorch, for gradients, other tensors, and machines without a
compiler: see :func:`supports`.
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
    """Whether the loops run here: on Linux, with AVX2 and with a compiler that knows OpenMP."""
    return _library() is not None


def supports(tensor: Tensor) -> bool:
    """Whether the loops run here, and on such a tensor: in float32 on the CPU."""
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32 and available()


def operator(
    signature: str, outputs: Callable[..., Any], multiply_adds: Callable[..., int]
) -> Callable[[Function], Function]:
    """Make a function an operator of PyTorch's, ``torch.ops.condseg.<name>``.

    Args:
        signature: in PyTorch's schema language.
        outputs: of the same arguments, empty tensors like those that come out.
        multiply_adds: of the same arguments, with shapes for tensors.
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


def call(name: str, *arguments: Tensor | Sequence[Tensor | int | None] | int | None) -> None:
    """Call a function of the library; the number of threads is its last argument."""
    getattr(_library(), name)(*map(_argument, arguments), _argument(torch.get_num_threads()))


def scratch(name: str, *arguments: int) -> Tensor:
    """Memory for a function to work in."""
    threads = torch.get_num_threads()
    numbers = getattr(_library(), f"{name}_scratch")
    numbers.restype = ctypes.c_int64
    return torch.empty(numbers(*map(_argument, (*arguments, threads))))


def _argument(value: Tensor | Sequence[Tensor | int | None] | int | None) -> Any:
    if value is None:
        return ctypes.c_void_p(None)
    if isinstance(value, int):
        return ctypes.c_int64(value)
    if isinstance(value, Tensor):
        assert value.is_contiguous()
        assert value.dtype == torch.float32
        return ctypes.c_void_p(value.data_ptr())
    parts = [_argument(part) for part in value]
    return (type(parts[0]) * len(parts))(*parts)


@functools.cache
def _library() -> ctypes.CDLL | None:
    architecture = ARCHITECTURES.get(torch.backends.cpu.get_cpu_capability())
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    if sys.platform != "linux" or architecture is None or shutil.which(compiler[0]) is None:
        log.info(
            "no compiled loops: they want Linux, a processor with AVX2 and a C++ compiler, which "
            "CXX may name; PyTorch computes the same in more time"
        )
        return None
    try:
        return ctypes.CDLL(str(_built([*compiler, *FLAGS, f"-march={architecture}"])))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or error
        log.warning("no compiled loops, PyTorch computes the same in more time: %s", reason)
        return None


def _built(command: Sequence[str]) -> Path:
    """The library of these sources, compiled unless it is there already."""
    files = sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h")])
    digest = hashlib.sha256(shlex.join(command).encode())
    for file in files:
        digest.update(file.read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "condseg"
    built = cache / f"{digest.hexdigest()[:16]}.so"
    if not built.exists():
        log.info("compiling the loops in %s", SOURCES)
        cache.mkdir(parents=True, exist_ok=True)
        sources = [str(file) for file in files if file.suffix == ".cpp"]
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            run = functools.partial(
                subprocess.run, cwd=folder, check=True, capture_output=True, text=True
            )
            # Linked without OpenMP: the one that PyTorch brought is in the process already, and
            # a second one would have threads of its own.
            run([*command, "-fopenmp", "-c", *sources])
            run([*command, "-shared", *map(str, Path(folder).glob("*.o")), "-o", built.name])
            (Path(folder) / built.name).replace(built)
    return built
