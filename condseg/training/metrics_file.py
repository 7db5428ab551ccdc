"""``metrics.csv`` of a run, which survives interruptions."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_warn

from condseg.training.runs import write_text


class MetricsWriter(ExperimentWriter):
    """Appends to an existing ``metrics.csv``, without the rows that a resumed run writes again."""

    def __init__(self, log_dir: str, first_step: int) -> None:
        super().__init__(log_dir)
        self._latest: dict[str, Any] = {}
        path = Path(self.metrics_file_path)
        if not path.is_file():
            return
        keys, rows = read_metrics(path)
        self.metrics_keys = keys
        self._write([row for row in rows if int(row["step"]) < first_step])

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        """Records a row; the same again, as before a checkpoint and after it, is ignored."""
        super().log_metrics(metrics_dict, step)
        if self.metrics[-1] == self._latest:
            self.metrics.pop()
        else:
            self._latest = self.metrics[-1]

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """As Lightning's, which leaves an incomplete file if the process is killed meanwhile."""
        self._write(read_metrics(Path(self.metrics_file_path))[1])

    def _write(self, rows: Iterable[dict[str, str]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.metrics_keys)
        if self.metrics_keys:
            writer.writeheader()
        writer.writerows(rows)
        write_text(Path(self.metrics_file_path), text.getvalue())

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


class EventsLogger(TensorBoardLogger):
    """Lightning's TensorBoard logger, without an empty ``hparams.yaml`` or file of events."""

    def save(self) -> None:
        if self._experiment is not None:
            self._experiment.flush()


def run_loggers(run: Path, first_step: int, tensorboard: bool = True) -> list[Logger]:
    """``metrics.csv`` and TensorBoard's events in the folder of a run.

    Lightning takes the folder of all other files from the first logger, which is therefore always
    that of ``metrics.csv``.

    Args:
        run: the folder.
        first_step: optimizer steps done before.
        tensorboard: whether to write TensorBoard's events.
    """
    folders = str(run.parent.parent), run.parent.name, run.name
    loggers: list[Logger] = [MetricsLogger(*folders, first_step)]
    if tensorboard:
        purge: dict[str, Any] = {"purge_step": first_step} if first_step else {}
        loggers.append(EventsLogger(*folders, default_hp_metric=False, **purge))
    return loggers


def read_metrics(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The names and the rows of a ``metrics.csv``.

    A row that is not whole is dropped, and this is logged: a kill or a full disk leaves one.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    whole, newline, torn = text.rpartition("\n")
    names, *rows = list(csv.reader(io.StringIO(whole + newline))) or [[]]
    valid = [row for row in rows if len(row) == len(names) and _step(names, row).isdigit()]
    if dropped := len(rows) - len(valid) + bool(torn):
        rank_zero_warn(f"{path}: {dropped} incomplete row{'s'[: dropped > 1]} dropped")
    return names, [dict(zip(names, row, strict=True)) for row in valid]


def _step(names: list[str], row: list[str]) -> str:
    return row[names.index("step")] if "step" in names else ""
