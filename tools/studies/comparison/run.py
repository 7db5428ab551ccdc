"""Runs trainings in processes of their own; finished ones are kept, interrupted ones resumed."""

from __future__ import annotations

import csv
import fcntl
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch

from studies.comparison.trials import Trial
from studies.measure import machine
from studies.report import write_json

RESUME = "--ckpt_path=last"
DIVERGED = "is not a finite number"
"""In the error with which a training ends whose loss is infinite or not a number."""
POINTS = 40
"""Of a learning curve."""


def run(
    trials: Callable[[], Iterable[Trial]],
    command: Callable[[Trial], list[str]],
    train: Path,
    device: torch.device,
    jobs: int,
    threads: int,
    observe: Callable[[Trial], float | None],
    finished: Callable[[Trial], object],
) -> None:
    """Train what has no result yet, ``jobs`` at a time.

    Args:
        trials: all trainings known so far, in the order in which to run them; called again after
            each training, whose result may call for others.
        command: arguments of a training.
        train: the script that trains.
        device: on which it trains; recorded with the results.
        threads: of each training.
        observe: measures how much the kernels change, see ``change``, before the run is deleted.
        finished: called after each training.

    Raises:
        ValueError: trainings failed; the others are finished by then.
        SystemExit: SIGTERM was received; running trainings have written a checkpoint.
    """
    failures: dict[Trial, str] = {}
    running: dict[int, tuple[Trial, IO[str], subprocess.Popen[bytes]]] = {}
    facts = machine(device) | {"threads": threads}
    del facts["load_average_1min"]
    start = time.monotonic()
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        while True:
            known = list(trials())
            taken = {trial for trial, _, _ in running.values()} | failures.keys()
            waiting = [t for t in known if t not in taken and t.result is None]
            if not waiting and not running:
                break
            code, cpu_seconds = 0, None
            try:
                if waiting and len(running) < jobs:
                    trial = waiting[0]
                    log, process = _start(trial, command(trial), train, threads)
                    if process is not None:
                        running[process.pid] = trial, log, process
                        continue
                else:
                    number, status, usage = os.wait4(-1, 0)
                    if number not in running:
                        continue
                    trial, log, process = running.pop(number)
                    process.returncode = code = os.waitstatus_to_exitcode(status)
                    if RESUME not in str(process.args):  # that of a part is not that of the whole
                        cpu_seconds = round(usage.ru_utime + usage.ru_stime, 2)
                with log:
                    metrics = _finish(trial, facts, code, cpu_seconds, observe)
            except ValueError as error:
                failures[trial] = outcome = str(error)
            else:
                outcome = f"mask AP {metrics['mask/AP']:.3f}, box AP {metrics['box/AP']:.3f}"
                finished(trial)
            minutes, done = (
                (time.monotonic() - start) / 60,
                sum(t.result is not None for t in known),
            )
            print(f"[{done}/{len(known)}] {minutes:.0f} min, {trial}: {outcome}", flush=True)
    finally:
        for action in (lambda number: os.kill(number, signal.SIGTERM), lambda n: os.waitpid(n, 0)):
            for number in running:
                with suppress(ProcessLookupError, ChildProcessError):
                    action(number)
        signal.signal(signal.SIGTERM, before)
    if failures:
        raise ValueError(f"{len(failures)} trainings failed: " + "; ".join(failures.values()))


def _start(
    trial: Trial, options: Sequence[str], train: Path, threads: int
) -> tuple[IO[str], subprocess.Popen[bytes] | None]:
    """The locked log, and the training's process unless only its result is missing."""
    runs, log = trial.runs, trial.folder / "log.txt"
    trial.folder.mkdir(parents=True, exist_ok=True)
    file = log.open("a", encoding="utf-8")
    try:
        # The training inherits the file, and with it the lock.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise ValueError(f"{trial}: runs in another process, which writes {log}") from error
    if _validation(runs) is not None:
        return file, None
    resumed = any(runs.glob("*/*/checkpoints/last.ckpt"))
    command = [
        *(sys.executable, str(train), *options),
        *(f"--seed_everything={trial.seed}", f"--data.seed={trial.seed}"),
        f"--trainer.default_root_dir={runs}",
        *([RESUME] if resumed else []),
    ]
    print("+", *command, file=file, flush=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    return file, subprocess.Popen(
        command, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
    )


def _finish(
    trial: Trial,
    facts: dict[str, Any],
    code: int,
    cpu_seconds: float | None,
    observe: Callable[[Trial], float | None],
) -> dict[str, float]:
    """Write the result and delete the run; its metrics, which are 0 if the loss has diverged."""
    runs, log = trial.runs, trial.folder / "log.txt"
    metrics, last = _validation(runs), ""
    if code or metrics is None:
        last = (log.read_text(encoding="utf-8").split("\n")[-2:] or [""])[0]
        if DIVERGED not in last:
            raise ValueError(f"{trial}: ended with code {code} ({last.strip()}), see {log}")
        metrics = {"mask/AP": 0.0, "box/AP": 0.0}
    diverged = DIVERGED in last
    content = {
        "metrics": metrics,
        "diverged": diverged,
        "kernel_change": None if diverged else observe(trial),
        "curve": _curve(runs),
        "cpu_seconds": cpu_seconds,
        "machine": facts,
    }
    result = trial.folder / "result.json"
    write_json(content, result.with_suffix(".partial")).replace(result)
    shutil.rmtree(runs)  # the checkpoints are large
    return metrics


def _rows(runs: Path) -> Iterator[list[dict[str, str]]]:
    """The rows of metrics.csv of each run, the newest first."""
    for path in sorted(runs.glob("*/*/metrics.csv"), reverse=True):
        with path.open(newline="", encoding="utf-8") as file:
            yield list(csv.DictReader(file))


def _validation(runs: Path) -> dict[str, float] | None:
    """The metrics of the newest run's last validation: "mask/AP" and so on."""
    for rows in _rows(runs):
        if judged := [row for row in rows if row.get("val/mask_AP")]:
            return {
                key.removeprefix("val/").replace("_", "/", 1): float(value)
                for key, value in judged[-1].items()
                if key.startswith("val/") and value
            }
    return None


def _curve(runs: Path) -> dict[str, list[float]]:
    """Means of the logged steps and of their losses, in up to ``POINTS`` parts of the training."""
    rows = [row for row in next(_rows(runs), []) if row.get("train/loss")]
    size = max(1, math.ceil(len(rows) / POINTS))
    parts = [rows[i : i + size] for i in range(0, len(rows), size)]
    return {
        name: [statistics.fmean(float(row[key]) for row in part) for part in parts]
        for name, key in (("steps", "step"), ("losses", "train/loss"))
    }
