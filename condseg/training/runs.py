"""Run folders: ``<root>/<configuration>/version_<k>``.

A run's folder has ``config.yaml``, ``metrics.csv``, TensorBoard events, ``images`` and
``checkpoints``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from filelock import FileLock, Timeout

from condseg.training.config_differences import differences

CONFIG = "config.yaml"
"""The configuration of a run, in its folder."""


def reserve_run(runs: Path) -> Path:
    """Creates the folder of a new run; runs that start at the same time get different ones.

    Args:
        runs: folder of this configuration's runs.
    """
    runs.mkdir(parents=True, exist_ok=True)
    number = max(map(_version, runs.glob("version_*")), default=-1) + 1
    while True:
        folder = runs / f"version_{number}"
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder


@contextmanager
def lock_run(run: Path) -> Iterator[None]:
    """Locks the folder of a run; the system unlocks it when the process ends.

    Raises:
        ValueError: another process trains in it.
    """
    lock = FileLock(run / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise ValueError(
            f"{run}: another process still trains in it; it can be resumed when that has ended, "
            "and without --ckpt_path a run of its own is started"
        ) from error
    try:
        yield
    finally:
        lock.release()


def run_of(checkpoint: Path) -> Path | None:
    """The folder of the run that wrote a checkpoint; None if the file was moved elsewhere."""
    folder = checkpoint.resolve().parent
    if folder.name != "checkpoints":
        return None
    run, here = folder.parent, Path.cwd()
    return run.relative_to(here) if run.is_relative_to(here) else run


def newest_checkpoint(runs: Path) -> Path:
    """``last.ckpt`` of the newest run that has one.

    Args:
        runs: folder of this configuration's runs.

    Raises:
        ValueError: no run has one.
    """
    for run in _newest_first(runs):
        if (path := last_of(run)).is_file():
            return path
    raise ValueError(f"--ckpt_path last: no run in {runs} has one; --ckpt_path auto starts one")


def newest_run(runs: Path, config: Mapping[str, Any]) -> Path | None:
    """The newest run of exactly this configuration."""
    for run in _newest_first(runs):
        path = run / CONFIG
        if path.is_file() and not any(differences(read_run_config(path), config)):
            return run
    return None


def last_of(run: Path) -> Path:
    """The checkpoint from which a run resumes."""
    return run / "checkpoints" / "last.ckpt"


def read_run_config(path: Path) -> dict[str, Any]:
    """The configuration of a run.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} is damaged: it has no keys and values")
    return {key: value for key, value in config.items() if key != "ckpt_path"}


def write_text(path: Path, text: str) -> None:
    """Writes a file; a process killed meanwhile leaves the old file or the new one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _newest_first(runs: Path) -> list[Path]:
    return sorted(runs.glob("version_*"), key=_version, reverse=True)


def _version(folder: Path) -> int:
    number = folder.name.removeprefix("version_")
    return int(number) if number.isdigit() else -1
