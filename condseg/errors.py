"""Errors that a user can correct end a command with one line and exit code 2."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

FIRST_PROCESS_SECONDS = 5.0
"""How long another process of a training waits for the first one to report the same error."""


@contextmanager
def user_errors(less_memory: str = "a smaller image or a smaller network") -> Iterator[None]:
    """Ends the program with ``error: ...`` and code 2 on a wrong value or file.

    condseg raises ``ValueError`` (and the system ``OSError``) for wrong inputs, with the name, the
    value and what is allowed; these and exhausted memory are reported in one line. Other errors
    are bugs and keep their traceback, as do all with ``CONDSEG_TRACEBACK=1`` in the environment.
    Of an error in all processes of a training, the first process reports.

    Args:
        less_memory: the command's options that reduce memory.

    Raises:
        SystemExit: code 2, after a ``ValueError``, an ``OSError``, or exhausted memory; 130, as in
            a shell, after Ctrl-C.
    """
    parent = os.getppid()
    try:
        yield
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        message = _in_worker(str(error))
        if isinstance(error, (MemoryError, RuntimeError)):
            size = _requested_memory(error)
            if size is None:
                raise
            message = f"out of memory{size}; to use less: {less_memory}"
        if os.environ.get("CONDSEG_TRACEBACK") == "1":
            raise
        if not _first_process_ends_too(parent):
            print(f"error: {message}", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        if os.environ.get("CONDSEG_TRACEBACK") == "1":
            raise
        print("stopped", file=sys.stderr)
        raise SystemExit(130) from None


def few(names: Sequence[str], count: int = 3) -> str:
    """The first names of a message, and the number of the others."""
    others = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + others


def _first_process_ends_too(parent: int) -> bool:
    """Whether this is another process of a training whose first one ends within some seconds.

    torchrun ends this process then; Lightning starts it as a child of the first one, ``parent``.
    """
    if os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0":
        return False
    end = time.monotonic() + FIRST_PROCESS_SECONDS
    while time.monotonic() < end:
        if os.getppid() != parent:
            return True
        time.sleep(0.1)
    return False


def _in_worker(message: str) -> str:
    """The message of an error in a loader's worker, which torch replaces by its traceback."""
    name = re.match(r"Caught (\w+) in DataLoader worker process", message)
    return (
        re.split(rf"^(?:\w+\.)*{name[1]}: ", message, flags=re.M)[-1].strip() if name else message
    )


def _requested_memory(error: Exception) -> str | None:
    """The requested memory if known, else ""; None for errors that are not about memory."""
    message = " ".join(str(error).split())
    on_gpu = re.search(r"(\w+) out of memory.*?[Tt]ried to allocate ([\d.]+ \w+)", message)
    if on_gpu:
        return f" ({on_gpu[1]}, {on_gpu[2]} requested)"
    on_cpu = re.search(r"can't allocate memory: you tried to allocate (\d+) bytes", message)
    if on_cpu:
        return f" (CPU, {int(on_cpu[1]) / 2**30:.2f} GiB requested)"
    return "" if isinstance(error, MemoryError) or "out of memory" in message else None
