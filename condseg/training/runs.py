"""Run folders: their numbering, their logs, and the checkpoint from which a run resumes.

A run's folder is ``<root>/<configuration>/version_<k>`` with ``metrics.csv``, TensorBoard events,
``images`` and ``checkpoints``.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter


class MetricsWriter(ExperimentWriter):
    """Appends to an existing ``metrics.csv``, without the rows that a resumed run writes again."""

    def __init__(self, log_dir: str, first_step: int) -> None:
        super().__init__(log_dir)
        path = Path(self.metrics_file_path)
        if not path.is_file():
            return
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            self.metrics_keys = list(reader.fieldnames or [])
            rows = [row for row in reader if int(row["step"]) < first_step]
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.metrics_keys)
            writer.writeheader()
            writer.writerows(rows)

    def _check_log_dir_exists(self) -> None:
        """Lightning deletes the file here."""


class MetricsLogger(CSVLogger):
    """Lightning's CSV logger, except that a resumed run continues in its own file.

    Args:
        save_dir: folder of all runs.
        name: folder of the configuration.
        version: folder of the run.
        first_step: rows from this step on are dropped, as the run writes them again.
    """

    def __init__(self, save_dir: str, name: str, version: str, first_step: int = 0) -> None:
        super().__init__(save_dir, name, version, flush_logs_every_n_steps=1)
        self.first_step = first_step

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            Path(self.log_dir).mkdir(parents=True, exist_ok=True)
            self._experiment = MetricsWriter(self.log_dir, self.first_step)
        return self._experiment


def run_loggers(runs: Path, checkpoint: Path | None, first_step: int) -> list[Logger]:
    """TensorBoard and ``metrics.csv``, in the checkpoint's own run folder or else in a new one.

    Args:
        runs: folder of this configuration's runs.
        checkpoint: from which the run resumes.
        first_step: optimizer steps done before.
    """
    if checkpoint is not None and checkpoint.parent.name == "checkpoints":
        run = checkpoint.resolve().parent.parent
    else:
        run = runs / f"version_{max(map(_version, runs.glob('version_*')), default=-1) + 1}"
    folders: dict[str, Any] = {
        "save_dir": str(run.parent.parent),
        "name": run.parent.name,
        "version": run.name,
    }
    purge: dict[str, Any] = {"purge_step": first_step} if first_step else {}
    return [
        TensorBoardLogger(**folders, default_hp_metric=False, **purge),
        MetricsLogger(**folders, first_step=first_step),
    ]


def find_checkpoint(ckpt_path: str | None, runs: Path, command: str = "") -> Path | None:
    """The checkpoint from which to resume.

    Args:
        ckpt_path: a path, ``last`` (that of the newest run) or None.
        runs: folder of this configuration's runs.
        command: the command that starts a new run, for the error message.

    Raises:
        ValueError: no run has the ``last`` checkpoint.
    """
    if ckpt_path != "last":
        return Path(ckpt_path) if ckpt_path is not None else None
    paths = runs.glob("version_*/checkpoints/last.ckpt")
    newest: Path | None = max(paths, key=lambda path: _version(path.parents[1]), default=None)
    if newest is None:
        raise ValueError(f"--ckpt_path last: no run in {runs} has one; start with: {command}")
    return newest


def check_same_network(
    source: str, other: Mapping[str, Any], own: Mapping[str, Any], ignored: Collection[str]
) -> None:
    """Compares a checkpoint's network with the configured one, argument by argument.

    Args:
        source: the checkpoint, for the error message.
        other: arguments of the checkpoint's network.
        own: arguments of the configured network.
        ignored: names of the arguments that may differ.

    Raises:
        ValueError: they differ; names the argument and both values.
    """
    for key, there, here in _differences(other, own):
        if key not in ignored:
            raise ValueError(f"{source} has model.network.{key} {there}, this configuration {here}")


def _differences(
    other: Mapping[str, Any], own: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    for key in sorted(other):
        there, here = other[key], own.get(key)
        if isinstance(there, Mapping) and isinstance(here, Mapping):
            yield from _differences(there, here, f"{prefix}{key}.")
        elif there != here:
            yield f"{prefix}{key}", there, here


def _version(folder: Path) -> int:
    number = folder.name.removeprefix("version_")
    return int(number) if number.isdigit() else -1
