"""The trainings: each in a process of its own, kept when finished, gone on with when cut short."""

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
from types import FrameType
from typing import Any

import torch

from studies.benchmarks.measure import machine
from studies.benchmarks.report import write_json
from studies.comparison.variants import VARIANTS, words

SCORE = "val/mask_AP"


@dataclass(frozen=True, slots=True)
class Budget:
    """What all trials have in common.

    Attributes:
        configs: configurations, each over the one before.
        steps: optimizer steps; the attentions' temperature falls in the first quarter.
        words: more of the command line.
    """

    configs: tuple[str, ...]
    steps: int
    words: tuple[str, ...] = ()

    def command(self, variant: str) -> list[str]:
        """Words of the training's command line but for seed and folder."""
        given = {
            "trainer.max_steps": self.steps,
            "trainer.val_check_interval": self.steps,
            "temperature.steps": self.steps // 4,
            "last_checkpoint.every_n_steps": max(50, self.steps // 4),
        }
        return [
            *(f"--config={name}" for name in self.configs),
            *(f"--{key}={value}" for key, value in given.items()),
            *words(VARIANTS[variant]),
            *self.words,
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
        """What it reached; None before its end."""
        path = self.folder / "result.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def trials(output: Path, variants: Sequence[str], seeds: int) -> list[Trial]:
    """All trials, seed by seed, so that what there is after a break are whole rounds."""
    return [
        Trial(name, seed, output / "trials" / name / f"seed_{seed}")
        for seed in range(seeds)
        for name in variants
    ]


def same_budget(output: Path, budget: Budget) -> None:
    """Notes the budget in the folder, or finds there that it is the same.

    Raises:
        ValueError: the folder's trials had another budget, key by key.
    """
    path = output / "budget.json"
    here: dict[str, Any] = json.loads(json.dumps(asdict(budget)))
    if path.is_file():
        there = json.loads(path.read_text(encoding="utf-8"))
        for key, value in here.items():
            if there.get(key) != value:
                raise ValueError(
                    f"output: {output} holds trials with {key} {there.get(key)}, asked is {value}; "
                    "take the same or another folder"
                )
    write_json(here, path)


def run(
    todo: Sequence[Trial],
    budget: Budget,
    train: Path,
    jobs: int,
    threads: int,
    finished: Callable[[Trial], object],
) -> None:
    """Trains what has no result yet.

    Args:
        todo: trials in the order in which they start.
        budget: of each.
        train: the script that trains.
        jobs: trials at once.
        threads: of each trial.
        finished: called after each trial.

    Raises:
        ValueError: trials that failed; the others are finished by then.
        SystemExit: SIGTERM came; the trials at work left a checkpoint.
    """
    failures: list[str] = []
    start, waiting = time.monotonic(), [t for t in todo if t.result is None]
    print(f"{len(todo)} trainings, {len(todo) - len(waiting)} done before", flush=True)
    processes = _Processes()
    with _terminable(), ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(_run, t, budget, train, threads, processes): t for t in waiting}
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                trial = futures[future]
                if isinstance(error := future.exception(), ValueError):
                    failures.append(str(error))
                    outcome = str(error)
                else:
                    outcome = _line(future.result())
                    finished(trial)
                left = len(waiting) - done
                rest = (time.monotonic() - start) / done * left
                print(
                    f"[{done}/{len(waiting)}] {trial}: {outcome}; {_clock(rest)} left", flush=True
                )
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            processes.stop()
            raise
    if failures:
        raise ValueError(f"{len(failures)} trainings failed: " + "; ".join(failures))


class _Processes:
    """Those at work, so that they end with the one that started them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ids: set[int] = set()
        self._stopped = False

    def run(self, command: Sequence[str], **options: Any) -> tuple[int, float]:
        """Exit code and CPU seconds of a command."""
        with self._lock:
            if self._stopped:
                return -signal.SIGTERM, 0.0
            process = subprocess.Popen(command, start_new_session=True, **options)
            self._ids.add(process.pid)
        # Popen's own wait does not tell the CPU time.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with self._lock:
            self._ids.remove(process.pid)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        return process.returncode, usage.ru_utime + usage.ru_stime

    def stop(self) -> None:
        """SIGTERM: a training ends after its step and leaves a checkpoint."""
        with self._lock:
            self._stopped = True
            for number in self._ids:
                os.kill(number, signal.SIGTERM)


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the block as an exception does."""

    def leave(number: int, frame: FrameType | None) -> None:
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
    start = time.monotonic()
    with log.open("a", encoding="utf-8") as file:
        try:
            # Also the training holds the lock, for it inherits the file.
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
        "seconds": round(time.monotonic() - start, 2),
        "machine": facts,
        "overrides": dict(VARIANTS[trial.variant].overrides),
    }
    for path in runs.glob("*/*/metrics.csv"):
        shutil.copy(path, trial.folder)
    _write_whole(content, trial.folder / "result.json")
    shutil.rmtree(runs)  # checkpoints, as large as they are
    return content


def _validation(runs: Path) -> dict[str, float] | None:
    """The figures of the last validation of the newest run, "mask/AP" and so on."""
    for path in sorted(runs.glob("*/*/metrics.csv"), reverse=True):
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row.get(SCORE)]
        if rows:
            return {
                key.removeprefix("val/").replace("_", "/", 1): float(value)
                for key, value in rows[-1].items()
                if key.startswith("val/") and value
            }
    return None


def _write_whole(content: dict[str, Any], path: Path) -> None:
    write_json(content, path.with_suffix(".partial")).replace(path)


def _line(result: dict[str, Any]) -> str:
    aps = ", ".join(f"{kind} AP {result['metrics'][f'{kind}/AP']:.3f}" for kind in ("mask", "box"))
    return f"{aps}, {_clock(result['seconds'])}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
