"""The user's cache, which holds what can be computed again."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/condseg``, or ``~/.cache/condseg``; made if it is missing.

    Raises:
        OSError: it cannot be made, or others can change what is in it.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "condseg"
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not is_private(cache.stat()):
        raise PermissionError(
            f"{cache} must belong to you and be writable by nobody else ('chmod go-w'), or "
            "XDG_CACHE_HOME name another folder"
        )
    return cache


def is_private(status: os.stat_result) -> bool:
    """Whether only the user and root can change a file or folder, as ssh asks of keys.

    Windows has no such modes; there a user's folders are the user's own.
    """
    if not hasattr(os, "geteuid"):
        return True
    others_write = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return status.st_uid in (0, os.geteuid()) and not others_write
