"""Writing a checkpoint so that a failure at any moment leaves the one before."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def write(content: Mapping[str, Any], path: str | os.PathLike[str], keep: int = 1) -> None:
    """Writes to a temporary file in the target's folder, then renames it.

    Temporary files that killed processes left for the same target are removed.

    Args:
        content: what ``torch.save`` takes.
        path: the target.
        keep: number of versions that are kept: the file that is replaced becomes ``NAME_1.ckpt``,
            that one ``NAME_2.ckpt``, and so on (:func:`earlier`).

    Raises:
        OSError: the file cannot be written, for example because the disk is full.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_partial_files(target)
    partial = _partial(target)
    try:
        with partial.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        _keep_earlier(target, keep)
        partial.replace(target)
    except (OSError, RuntimeError) as error:
        cause = _system_error(error)
        if cause is None:
            raise
        partial.unlink(missing_ok=True)
        raise OSError(_message(target, cause, content)) from error
    finally:
        partial.unlink(missing_ok=True)


def earlier(path: Path, age: int = 1) -> Path:
    """Where :func:`write` keeps the version of a file that was replaced ``age`` writes ago."""
    return path.with_stem(f"{path.stem}_{age}")


def _partial(target: Path) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}.partial")


def _keep_earlier(target: Path, keep: int) -> None:
    if keep < 2 or not target.is_file():
        return
    for age in range(keep - 1, 1, -1):
        if earlier(target, age - 1).is_file():
            earlier(target, age - 1).replace(earlier(target, age))
    # A second name of the file, so that there is a target at any moment.
    partial = _partial(earlier(target))
    try:
        partial.hardlink_to(target)
    except OSError:  # a file system without links
        shutil.copyfile(target, partial)
    partial.replace(earlier(target))


def _remove_partial_files(target: Path) -> None:
    for name in (target.name, earlier(target).name):
        for path in target.parent.glob(f".{name}.*.partial"):
            number = path.name.split(".")[-2]
            if number.isdigit() and not _is_another_process(int(number)):
                path.unlink(missing_ok=True)


def _is_another_process(number: int) -> bool:
    if number == os.getpid():  # in a container, the killed process often had the same number
        return False
    if os.name == "nt":  # where os.kill() would end the process
        return True
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True


def _system_error(error: BaseException) -> OSError | None:
    """The system's error; ``torch.save`` may raise another one after it."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__context__
    return cause


def _message(target: Path, error: OSError, content: Mapping[str, Any]) -> str:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    reason = "disk full" if full else error.strerror or str(error)
    free = shutil.disk_usage(target.parent).free
    kept = f"; {target.name} is still the one before" if target.is_file() else ""
    return f"{target}: {reason}; {_size(content):,} bytes needed, {free:,} free{kept}"


def _size(content: object) -> int:
    """Bytes of the tensors in nested dictionaries, lists and tuples."""
    if isinstance(content, torch.Tensor):
        return content.nbytes
    if isinstance(content, Mapping):
        return sum(map(_size, content.values()))
    return sum(map(_size, content)) if isinstance(content, (list, tuple)) else 0
