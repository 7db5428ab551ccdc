"""The classes that configurations and checkpoints may name."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec

PACKAGES = ("condseg", "torch.nn", "torch.optim", "lightning.pytorch")
"""Their classes may be named by everyone. A class path imports its module, and so runs its code."""

_FORBIDDEN = re.compile(r"Importing '(\S+)' is not allowed")


@contextmanager
def allowing(packages: Sequence[str]) -> Iterator[None]:
    """Also allows the classes of other packages, or modules, or single ones by their class path.

    They are searched in the current folder, too, after the installed packages.

    Raises:
        ValueError: there is no such package.
    """
    from jsonargparse import set_parsing_settings

    own = [name for name in packages if name not in PACKAGES]
    if own and "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for name in own:
        _check_exists(name)
    set_parsing_settings(import_path_allowlist=own)
    try:
        yield
    finally:
        set_parsing_settings(import_path_denylist=own)


def forbidden(message: str) -> str | None:
    """What to say in place of jsonargparse's message about a class that is not allowed."""
    match = _FORBIDDEN.search(message)
    if match is None:
        return None
    package = match[1].partition(".")[0]
    text = f"{match[1]} is not allowed; classes of {', '.join(PACKAGES)} are"
    if package in sys.stdlib_module_names:
        return text
    return (
        f"{text}, and with --allow {package} (in Python, allow=[{package!r}]) those of {package}, "
        "whose code then runs"
    )


def _check_exists(name: str) -> None:
    if not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(f"allow is {name!r}; the name of a package or module is allowed")
    package = name.partition(".")[0]
    if package in sys.stdlib_module_names:
        raise ValueError(f"allow is {name!r}; Python's own modules, which start programs, are not")
    if find_spec(package) is None:
        raise ValueError(
            f"allow is {name!r}; there is no module {package}, neither installed nor in the "
            "current folder"
        )
