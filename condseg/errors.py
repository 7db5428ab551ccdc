"""What the tools do with an error that the user can put right: one line and exit code 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def user_errors() -> Iterator[None]:
    """Ends the program with ``error: ...`` and code 2 for a wrong value or file.

    condseg raises ``ValueError`` (and the system ``OSError``) where the input is at fault, with
    the name, the value and what is allowed; everything else keeps its traceback, for it is ours.
    ``CONDSEG_TRACEBACK=1`` in the environment shows the traceback of these, too.

    Raises:
        SystemExit: code 2, after a ``ValueError`` or an ``OSError``.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        if os.environ.get("CONDSEG_TRACEBACK") == "1":
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
