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
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from studies.comparison.variants import VARIANTS, arguments
from studies.measure import machine
from studies.report import write_json


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
    """Write the budget into the folder, or compare it with the one that is there.

    Raises:
        ValueError: the folder's trials had another budget.
    """
    path = output / "budget.json"
    new: dict[str, Any] = json.loads(json.dumps(asdict(budget)))
    old = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else new
    for key, value in new.items():
        if old.get(key) != value:
            raise ValueError(
                f"output: {output} holds trials with {key} {old.get(key)}, not {value}; "
                "choose another folder"
            )
    write_json(new, path)


def run(
    todo: Sequence[Trial],
    budget: Budget,
    train: Path,
    jobs: int,
    threads: int,
    finished: Callable[[Trial], object],
) -> None:
    """Train what has no result yet.

    Args:
        todo: trials in the order in which they start.
        budget: of each.
        train: the script that trains.
        jobs: trials at a time.
        threads: of each trial.
        finished: called after each trial.

    Raises:
        ValueError: trials failed; the others are finished by then.
        SystemExit: SIGTERM was received; running trials have written a checkpoint.
    """
    failures: list[str] = []
    start, waiting = time.monotonic(), [t for t in todo if t.result is None]
    print(f"{len(todo)} trainings, {len(todo) - len(waiting)} done before", flush=True)
    processes = _Processes()
    with _exit_on_sigterm(), ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(_run, t, budget, train, threads, processes): t for t in waiting}
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                trial = futures[future]
                if isinstance(error := future.exception(), ValueError):
                    failures.append(outcome := str(error))
                else:
                    metrics = future.result()["metrics"]
                    outcome = f"mask AP {metrics['mask/AP']:.3f}, box AP {metrics['box/AP']:.3f}"
                    finished(trial)
                minutes = (time.monotonic() - start) / 60
                print(f"[{done}/{len(waiting)}] {minutes:.0f} min, {trial}: {outcome}", flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            processes.terminate()
            raise
    if failures:
        raise ValueError(f"{len(failures)} trainings failed: " + "; ".join(failures))


class _Processes:
    """The running trainings, which end with this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._terminated = False

    def run(self, command: Sequence[str], **options: Any) -> tuple[int, float]:
        """Exit code and CPU seconds of a command."""
        with self._lock:
            if self._terminated:
                return -signal.SIGTERM, 0.0
            process = subprocess.Popen(command, start_new_session=True, **options)
            self._running[process.pid] = process
        # Popen's own wait does not return the CPU time.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with self._lock:
            del self._running[process.pid]
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        return process.returncode, usage.ru_utime + usage.ru_stime

    def terminate(self) -> None:
        """Send SIGTERM: a training ends after its step and writes a checkpoint."""
        with self._lock:
            self._terminated = True
            for number in self._running:
                os.kill(number, signal.SIGTERM)


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Raises SystemExit in the block when SIGTERM is received."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(
    trial: Trial, budget: Budget, train: Path, threads: int, processes: _Processes
) -> dict[str, Any]:
    trial.folder.mkdir(parents=True, exist_ok=True)
    runs, log = trial.folder / "run", trial.folder / "log.txt"
    resumed = any(runs.glob("*/*/checkpoints/last.ckpt"))
    command = [
        *(sys.executable, str(train), *budget.command(trial.variant)),
        *(f"--seed_everything={trial.seed}", f"--data.seed={trial.seed}"),
        f"--trainer.default_root_dir={runs}",
        *(["--ckpt_path=last"] if resumed else []),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with log.open("a", encoding="utf-8") as file:
        try:
            # The training inherits the file, and with it the lock.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{trial}: runs in another process, which writes {log}") from error
        metrics, code, cpu = _validation(runs), 0, 0.0
        if metrics is None:
            print("+", *command, file=file, flush=True)
            code, cpu = processes.run(
                command, env=environment, stdout=file, stderr=subprocess.STDOUT
            )
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
        "cpu_seconds": None if resumed or not cpu else round(cpu, 2),
        "machine": facts,
        "overrides": dict(VARIANTS[trial.variant].overrides),
    }
    for path in runs.glob("*/*/metrics.csv"):
        shutil.copy(path, trial.folder)
    result = trial.folder / "result.json"
    write_json(content, result.with_suffix(".partial")).replace(result)
    shutil.rmtree(runs)  # the checkpoints are large
    return content


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
