"""What the tools do with an error that the user can put right: one line and exit code 2."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def user_errors(less_memory: str = "a smaller picture or a smaller network") -> Iterator[None]:
    """Ends the program with ``error: ...`` and code 2 for a wrong value or file.

    condseg raises ``ValueError`` (and the system ``OSError``) where the input is at fault, with
    the name, the value and what is allowed; everything else keeps its traceback, for it is ours.
    Only where memory ended the message is of what the user can turn. ``CONDSEG_TRACEBACK=1`` in
    the environment shows the traceback of these, too.

    Args:
        less_memory: what needs less memory, the options of the tool by name.

    Raises:
        SystemExit: code 2, after a ``ValueError``, an ``OSError``, or where memory ended.
    """
    try:
        yield
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        message = str(error)
        if isinstance(error, (MemoryError, RuntimeError)):
            asked = _memory_asked(error)
            if asked is None:
                raise
            message = f"out of memory{asked}; what needs less: {less_memory}"
        if os.environ.get("CONDSEG_TRACEBACK") == "1":
            raise
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(2) from error


def _memory_asked(error: Exception) -> str | None:
    """How much memory there was not, where that is what the error says; else None."""
    message = " ".join(str(error).split())
    on_gpu = re.search(r"(\w+) out of memory.*?[Tt]ried to allocate ([\d.]+ \w+)", message)
    if on_gpu:
        return f" ({on_gpu[1]}, {on_gpu[2]} asked for)"
    on_cpu = re.search(r"can't allocate memory: you tried to allocate (\d+) bytes", message)
    if on_cpu:
        return f" (CPU, {int(on_cpu[1]) / 2**30:.2f} GiB asked for)"
    return "" if isinstance(error, MemoryError) or "out of memory" in message else None
