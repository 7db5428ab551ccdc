"""The trainings: each in a process of its own; finished ones are kept, interrupted ones resumed."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import torch

from studies.comparison.variants import VARIANTS, arguments
from studies.measure import machine
from studies.report import write_json

RESUME = "--ckpt_path=last"


@dataclass(frozen=True, slots=True)
class Budget:
    """What all trials have in common.

    Attributes:
        configs: configurations; later ones override earlier ones.
        steps: optimizer steps; the attentions' temperature falls in the first quarter.
        arguments: further ones of the command line.
    """

    configs: tuple[str, ...]
    steps: int
    arguments: tuple[str, ...] = ()

    def command(self, variant: str) -> list[str]:
        """Arguments of the training, without seed and folder."""
        options = {
            "trainer.max_steps": self.steps,
            "trainer.val_check_interval": self.steps,
            "temperature.steps": self.steps // 4,
            "last_checkpoint.every_n_steps": max(50, self.steps // 4),
        }
        return [
            *(f"--config={name}" for name in self.configs),
            *(f"--{key}={value}" for key, value in options.items()),
            *arguments(VARIANTS[variant]),
            *self.arguments,
        ]


@dataclass(frozen=True, slots=True)
class Trial:
    """One training of a variant with a seed."""

    variant: str
    seed: int
    folder: Path

    def __str__(self) -> str:
        return f"{VARIANTS[self.variant].label}, seed {self.seed}"

    @property
    def result(self) -> dict[str, Any] | None:
        """Its result; None before its end."""
        path = self.folder / "result.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def trials(output: Path, variants: Sequence[str], seeds: int) -> list[Trial]:
    """All trials, seed by seed, so that an interrupted comparison has whole rounds."""
    return [
        Trial(name, seed, output / "trials" / name / f"seed_{seed}")
        for seed in range(seeds)
        for name in variants
    ]


def check_budget(output: Path, budget: Budget) -> None:
    """Write the budget into the folder; ValueError if the trials there had another one."""
    path = output / "budget.json"
    new: dict[str, Any] = json.loads(json.dumps(asdict(budget)))
    old = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else new
    for key in new:
        if old.get(key) != new[key]:
            there = f"{output} holds trials with {key} {old.get(key)}, not {new[key]}"
            raise ValueError(f"output: {there}; choose another folder")
    write_json(new, path)


def run(
    todo: Sequence[Trial],
    budget: Budget,
    train: Path,
    jobs: int,
    threads: int,
    finished: Callable[[Trial], object],
) -> None:
    """Train what has no result yet, ``jobs`` at a time, in the order of ``todo``.

    Args:
        train: the script that trains.
        threads: of each trial.
        finished: called after each trial.

    Raises:
        ValueError: trials failed; the others are finished by then.
        SystemExit: SIGTERM was received; running trials have written a checkpoint.
    """
    failures: list[str] = []
    running: dict[int, tuple[Trial, IO[str], subprocess.Popen[bytes]]] = {}
    start, waiting = time.monotonic(), [t for t in todo if t.result is None]
    count = len(waiting)
    print(f"{len(todo)} trainings, {len(todo) - count} done before", flush=True)
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        while waiting or running:
            code, cpu_seconds = 0, None
            try:
                if waiting and len(running) < jobs:
                    trial = waiting.pop(0)
                    log, process = _start(trial, budget, train, threads)
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
                    metrics = _finish(trial, threads, code, cpu_seconds)
            except ValueError as error:
                failures.append(outcome := str(error))
            else:
                outcome = f"mask AP {metrics['mask/AP']:.3f}, box AP {metrics['box/AP']:.3f}"
                finished(trial)
            minutes = (time.monotonic() - start) / 60
            done = count - len(waiting) - len(running)
            print(f"[{done}/{count}] {minutes:.0f} min, {trial}: {outcome}", flush=True)
    finally:
        for action in (lambda number: os.kill(number, signal.SIGTERM), lambda n: os.waitpid(n, 0)):
            for number in running:
                with suppress(ProcessLookupError, ChildProcessError):
                    action(number)
        signal.signal(signal.SIGTERM, before)
    if failures:
        raise ValueError(f"{len(failures)} trainings failed: " + "; ".join(failures))


def _start(
    trial: Trial, budget: Budget, train: Path, threads: int
) -> tuple[IO[str], subprocess.Popen[bytes] | None]:
    """The locked log, and the training's process unless only its result is missing."""
    runs, log = trial.folder / "run", trial.folder / "log.txt"
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
        *(sys.executable, str(train), *budget.command(trial.variant)),
        *(f"--seed_everything={trial.seed}", f"--data.seed={trial.seed}"),
        f"--trainer.default_root_dir={runs}",
        *([RESUME] if resumed else []),
    ]
    print("+", *command, file=file, flush=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    return file, subprocess.Popen(
        command, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
    )


def _finish(trial: Trial, threads: int, code: int, cpu_seconds: float | None) -> dict[str, float]:
    """Write the result and delete the run; its metrics."""
    runs, log = trial.folder / "run", trial.folder / "log.txt"
    metrics = _validation(runs)
    if code or metrics is None:
        last = (log.read_text(encoding="utf-8").split("\n")[-2:] or [""])[0]
        raise ValueError(f"{trial}: ended with code {code} ({last.strip()}), see {log}")
    facts = machine(torch.device("cpu")) | {"threads": threads}
    del facts["load_average_1min"]
    content = {
        "variant": trial.variant,
        "seed": trial.seed,
        "metrics": metrics,
        "cpu_seconds": cpu_seconds,
        "machine": facts,
        "overrides": dict(VARIANTS[trial.variant].overrides),
    }
    for path in runs.glob("*/*/metrics.csv"):
        shutil.copy(path, trial.folder)
    result = trial.folder / "result.json"
    write_json(content, result.with_suffix(".partial")).replace(result)
    shutil.rmtree(runs)  # the checkpoints are large
    return metrics


def _validation(runs: Path) -> dict[str, float] | None:
    """The metrics of the newest run's last validation: "mask/AP" and so on."""
    for path in sorted(runs.glob("*/*/metrics.csv"), reverse=True):
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row.get("val/mask_AP")]
        if rows:
            return {
                key.removeprefix("val/").replace("_", "/", 1): float(value)
                for key, value in rows[-1].items()
                if key.startswith("val/") and value
            }
    return None
