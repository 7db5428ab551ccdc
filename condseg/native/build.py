"""The C++ library: compiled on first use, and kept in the user's cache.

A C++ compiler (``$CXX``, or ``c++``) builds it of the sources beside this file in a few seconds;
it is kept in ``$XDG_CACHE_HOME/condseg`` (or ``~/.cache/condseg``) as
``<digest of the sources and the command>-<SHA-256 of the library>.so``. As loading it executes it,
a library is only loaded if it has this SHA-256 and, like its folder, belongs to the user or to
root and is writable by nobody else; a wrong one is compiled again.

``torch.utils.cpp_extension`` is not used: it needs ninja and PyTorch's headers, and loads whatever
lies in its folder.
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
from collections.abc import Sequence
from pathlib import Path

import torch
from filelock import FileLock

from condseg.cache import cache_folder, is_private

log = logging.getLogger(__name__)

SOURCES = Path(__file__).parent
ARCHITECTURES = {"AVX2": "x86-64-v3", "AVX512": "x86-64-v4"}  # what PyTorch finds -> GCC's name
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fno-math-errno")


@functools.cache
def load_library() -> ctypes.CDLL | None:
    """The library, compiled if it is not in the cache; None, and a log entry, if that fails."""
    try:
        architecture = ARCHITECTURES.get(torch.backends.cpu.get_cpu_capability())
        compiler = _compiler()
        if sys.platform != "linux" or architecture is None or shutil.which(compiler[0]) is None:
            log.info(
                "no C++ kernels: they need Linux, a processor with AVX2 and a C++ compiler (CXX); "
                "PyTorch computes the same more slowly"
            )
            return None
        return _load([*compiler, *FLAGS, f"-march={architecture}"])
    except (OSError, ValueError, RuntimeError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or error
        log.warning("no C++ kernels, PyTorch computes the same more slowly: %s", reason)
        return None


def _compiler() -> list[str]:
    text = os.environ.get("CXX", "")
    try:
        return shlex.split(text) or ["c++"]
    except ValueError as error:
        raise ValueError(f"CXX is {text!r}: {error}") from error


def _load(command: Sequence[str]) -> ctypes.CDLL:
    files = sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h")])
    digest = hashlib.sha256(shlex.join(command).encode())
    for file in files:
        digest.update(file.read_bytes())
    key = digest.hexdigest()[:16]
    cache = cache_folder()
    library = _cached(cache, key)
    if library is None:
        with FileLock(cache / ".lock"):
            library = _cached(cache, key)  # of a process that held the lock before
            if library is None:
                _compile(command, [file for file in files if file.suffix == ".cpp"], cache, key)
                library = _cached(cache, key)
    if library is None:
        raise OSError(f"{cache}: what is written there has another content, owner or mode")
    return library


def _cached(cache: Path, key: str) -> ctypes.CDLL | None:
    for path in cache.glob(f"{key}-*.so"):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:  # a symbolic link, or deleted meanwhile
            continue
        with open(descriptor, "rb", closefd=False) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if path.stem == f"{key}-{digest}" and is_private(os.fstat(descriptor)):
            # By its descriptor, so that what was checked is loaded. It stays open: the dynamic
            # linker takes files of equal names for the same.
            return ctypes.CDLL(f"/proc/self/fd/{descriptor}")
        os.close(descriptor)
    return None


def _compile(command: Sequence[str], sources: Sequence[Path], cache: Path, key: str) -> None:
    """Replaces all libraries of this key; the caller holds the lock."""
    log.info("compiling the C++ kernels in %s", SOURCES)
    for old in cache.glob("build-*"):  # of killed processes
        shutil.rmtree(old, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="build-", dir=cache) as folder:  # mode 0700
        run = functools.partial(
            subprocess.run, cwd=folder, check=True, capture_output=True, text=True
        )
        # Linked without OpenMP: PyTorch's is loaded already, and a second one would have threads
        # of its own.
        run([*command, "-fopenmp", "-c", *map(str, sources)])
        library = Path(folder) / "library.so"
        run([*command, "-shared", *map(str, Path(folder).glob("*.o")), "-o", library.name])
        library.chmod(0o700)
        with library.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        for old in cache.glob(f"{key}-*.so"):
            log.warning("%s has a wrong checksum, owner or mode; it is compiled again", old)
            old.unlink()
        library.replace(cache / f"{key}-{digest}.so")
