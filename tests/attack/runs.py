"""Trainings that are killed, damaged, started at once, on a full disk, or lose a rank."""

from __future__ import annotations

import ctypes
import importlib
import itertools
import os
import resource
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attack.checkpoints import differs
from attack.forks import Ended, Fork, RefusedError, call, check, command
from attack.rounds import Attack
from attack.values import ANY_DAMAGE, Damage, damages
from hypothesis import strategies as st
from support import tiny

from condseg.cli.train import main
from condseg.training.module import CondInstModule
from condseg.zoo.checkpoint import load

STEPS = 4
ARGS = (
    f"--trainer.max_steps={STEPS}",
    "--trainer.val_check_interval=2",
    "--last_checkpoint.every_n_steps=1",
    "--model.mask_loss.max_proposals=6",
    "--trainer.callbacks+=condseg.training.callbacks.ExponentialAveraging",
    "--progress.refresh_rate=0",
    "--validation_images.count=0",
)
SECONDS = 300.0
"""For one training, on a busy machine."""


@dataclass(frozen=True)
class State:
    """The data, the folder and the results of an uninterrupted training.

    Attributes:
        stages: operations on files of its run folder.
    """

    data: Path
    runs: Path
    results: dict[str, Any]
    stages: int


def prepare(folder: Path) -> State:
    data, runs = tiny.make_set(folder / "data"), folder / "runs"
    tiny.arguments(data, runs)
    stages = folder / "stages"

    def training() -> list[str]:
        counter = itertools.count()
        _at_each_stage(runs, lambda: stages.write_text(str(next(counter))))
        train(data, runs)
        return sorted(sys.modules)

    ended = call(training, folder / "log", SECONDS)
    assert ended.value, f"{ended.fault}\n{(folder / 'log').read_text()[-2000:]}"
    for name in ended.value:  # each training in a fork would import them again
        if name.startswith(("tensorboard", "lightning", "pycocotools", "condseg")):
            importlib.import_module(name)
    return State(data, runs, results(runs), int(stages.read_text()))


def train(data: Path, runs: Path, *more: str, ckpt_path: str = "auto") -> None:
    """A training as by the command line, resumed if there is something to resume."""
    runs.mkdir(exist_ok=True)
    main(tiny.arguments(data, runs, *ARGS, f"--ckpt_path={ckpt_path}", *more))


def results(runs: Path) -> dict[str, Any]:
    """The numbers of the newest run."""
    run = newest(runs)
    last, best = (load(run / "checkpoints" / name) for name in ("last.ckpt", "best.ckpt"))
    return {
        "metrics": (run / "metrics.csv").read_text(),
        "steps": last["global_step"],
        "last": last["state_dict"],
        "best step": best["global_step"],
        "best": best["state_dict"],
        "scores": [c.get("best_model_score") for c in best["callbacks"].values()],
    }


def newest(runs: Path) -> Path:
    """The folder of the newest of less than ten runs."""
    return max((runs / "tiny").glob("version_*"))


def compare(state: State, runs: Path) -> None:
    """The newest run has the numbers of the uninterrupted one, and no files left over."""
    difference = differs(results(runs), state.results)
    check(not difference, f"other than the uninterrupted run: {difference[1:].partition('.')[0]}")
    left = [path.name for path in newest(runs).rglob("*") if "partial" in path.name]
    check(not left, f"left over | {left}")


def right(ended: Ended, log: Path) -> None:
    """The call ended without a fault."""
    check(not ended.fault, f"{ended.fault} | {log.read_text()[-300:]}")


def resume(state: State, runs: Path, log: Path) -> None:
    """Resumes in a fork and compares."""
    right(call(lambda: train(state.data, runs), log, SECONDS), log)
    compare(state, runs)


# Killed


@dataclass(frozen=True)
class Kill:
    """At which operation on files the process dies, or after how many bytes of the next file."""

    stage: int
    size: int | None


def kills(state: State) -> st.SearchStrategy[list[Kill]]:
    sizes = st.sampled_from([None, None, None, 0, 1, 100, 1500, 4096, 10**5, 10**6, 4_700_000])
    one = st.builds(Kill, st.integers(1, state.stages), sizes)
    return st.lists(one, min_size=1, max_size=2)


def run_killed(state: State, case: list[Kill], folder: Path) -> None:
    """After one or two deaths, the resumed run has the same numbers."""
    runs = folder / "runs"
    tiny.arguments(state.data, runs)
    for number, kill in enumerate(case):
        log = folder / f"killed {number}"
        ended = call(lambda kill=kill: _die(state, runs, kill), log, SECONDS)
        if ended.signal in (signal.SIGKILL, signal.SIGXFSZ):
            continue
        right(ended, log)
    resume(state, runs, folder / "resumed")


def _die(state: State, runs: Path, kill: Kill) -> None:
    counter = itertools.count()
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it

    def stage() -> None:
        if next(counter) != kill.stage:
            return
        if kill.size is None:
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (kill.size, resource.RLIM_INFINITY))

    _at_each_stage(runs, stage)
    train(state.data, runs)


def _at_each_stage(runs: Path, action: Callable[[], object]) -> None:
    """Calls ``action`` before each file below ``runs`` is opened to write, renamed or removed."""
    inside = False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal inside
        if inside or event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.truncate"):
            return
        if not str(arguments[0]).startswith(str(runs / "tiny")):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        inside = True
        action()
        inside = False

    sys.addaudithook(hook)


# Damaged run folders


def folder_damages(state: State) -> st.SearchStrategy[tuple[str, Damage]]:
    names = [
        "metrics.csv",
        "metrics.csv",
        "checkpoints/last.ckpt",
        "checkpoints/best.ckpt",
        "config.yaml",
    ]
    return st.tuples(st.sampled_from(names), damages(*ANY_DAMAGE))


def run_damaged(state: State, case: tuple[str, Damage], folder: Path) -> None:
    """A run whose folder has a damaged file continues, or is refused and stays as it is."""
    name, damage = case
    runs = folder / "runs"
    shutil.copytree(state.runs, runs)
    path = runs / "tiny/version_0" / name
    path.write_bytes(damage.apply(path.read_bytes()))
    before = path.read_bytes()
    steps = STEPS + 1

    def go_on() -> None:
        longer = f"--trainer.max_steps={steps}"
        command(lambda: train(state.data, runs, longer, ckpt_path="last"), path.name)

    log = folder / "resumed"
    ended = call(go_on, log, SECONDS)
    if ended.refused:
        check(path.read_bytes() == before, f"refused, and {name} was changed")
        raise RefusedError
    right(ended, log)
    check(load(runs / "tiny/version_0/checkpoints/last.ckpt")["global_step"] == steps, "steps")
    written = tiny.losses(runs)
    check(steps - 1 in written, f"no loss of step {steps}")


# Two at once


def run_two(state: State, case: int, folder: Path) -> None:
    """Runs that are started at once have folders of their own, and the numbers of one alone."""
    runs = folder / "runs"
    tiny.arguments(state.data, runs)
    reader, writer = os.pipe()

    def training() -> None:
        os.close(writer)
        os.read(reader, 1)  # until all are ready
        main(tiny.arguments(state.data, runs, *ARGS))

    forks = []
    for number in range(case):
        fork = Fork(lambda _: training(), folder / f"{number}", group=False)
        forks.append(fork.start())
    os.close(writer)
    os.close(reader)
    for number, fork in enumerate(forks):
        right(fork.wait(SECONDS * case), folder / f"{number}")
    versions = {path.name for path in (runs / "tiny").iterdir()}
    check(versions == {f"version_{k}" for k in range(case)}, f"{case} runs in {versions}")
    for version in versions:
        alone = folder / f"only {version}/tiny"
        alone.mkdir(parents=True)
        (runs / "tiny" / version).rename(alone / "version_0")
        compare(state, alone.parent)


# Full disk

_LIBC = ctypes.CDLL(None, use_errno=True)
_NEW_MOUNTS, _NEW_USERS = 0x00020000, 0x10000000
_PRIVATE, _REMOUNT = 0x44000, 0x20


def run_full(state: State, case: int, folder: Path) -> None:
    """A full disk ends a run in one line that says so; what was saved before resumes it."""
    runs = folder / "runs"
    runs.mkdir()
    mounted = _mount(runs, case)
    tiny.arguments(state.data, runs)

    def training() -> None:
        if not mounted:  # no file may be larger instead
            size = max(case << 10, 5000)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        command(lambda: train(state.data, runs), "disk", "space", "File too large")

    log = folder / "full"
    ended = call(training, log, SECONDS)
    if not ended.refused:
        right(ended, log)
    check(not mounted or _mount(runs, 100 << 10, _REMOUNT), "the attack cannot enlarge the disk")
    if ended.refused:
        resume(state, runs, folder / "resumed")
    else:
        compare(state, runs)


def _mount(folder: Path, kilobytes: int, flags: int = 0) -> bool:
    """Mounts a file system of that size, which only this process sees, if that is allowed."""
    if not flags and not _own_mounts():
        return False
    options = f"size={kilobytes}k".encode()
    return _LIBC.mount(b"tmpfs", str(folder).encode(), b"tmpfs", flags, options) == 0


def _own_mounts() -> bool:
    user, group = os.getuid(), os.getgid()
    if _LIBC.unshare(_NEW_MOUNTS):
        if _LIBC.unshare(_NEW_MOUNTS | _NEW_USERS):
            return False
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    return _LIBC.mount(b"none", b"/", None, _PRIVATE, None) == 0


# Ranks


@dataclass(frozen=True)
class Loss:
    """The signal that a rank gets in a step."""

    rank: int
    signal: signal.Signals
    step: int


def run_ranks(state: State, case: Loss, folder: Path) -> None:
    """If one of two ranks dies or stops, the other ends in one line, and the run can go on."""
    runs = folder / "runs"
    tiny.arguments(state.data, runs)
    with socket.socket() as connection:
        connection.bind(("127.0.0.1", 0))
        port = str(connection.getsockname()[1])

    def training(rank: int) -> None:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
        os.environ |= {"LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0"}
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        if rank == case.rank:
            _signal_in_step(case)
        ddp = ("--trainer.strategy=ddp", "--trainer.devices=2", *RANKS_TIMEOUT)
        command(lambda: train(state.data, runs, *ddp), "rank", "process")

    forks = [Fork(training, folder / f"rank {r}", group=False).start(r) for r in range(2)]
    other = 1 - case.rank
    ended = forks[other].wait(SECONDS)
    for fork in forks:
        if not fork.closed:
            fork.close()
    check(ended.refused, f"{ended.fault} | {(folder / f'rank {other}').read_text()[-300:]}")
    log = folder / "resumed"
    last = "last" if list(runs.rglob("last.ckpt")) else "auto"
    right(call(lambda: train(state.data, runs, ckpt_path=last), log, SECONDS), log)
    check(results(runs)["steps"] == STEPS, "steps")


RANKS_TIMEOUT = ("--process_timeout=20",)


def _signal_in_step(loss: Loss) -> None:
    original = CondInstModule.training_step

    def step(self: CondInstModule, *arguments: Any) -> Any:
        if self.global_step == loss.step:
            os.kill(os.getpid(), loss.signal)
        return original(self, *arguments)

    CondInstModule.training_step = step  # type: ignore[method-assign]


KILLED = Attack(
    "killed runs",
    "one or two deaths at an operation on files or within one; then resumed, digit for digit",
    prepare,
    kills,
    run_killed,
    per_round=1,
    seconds=4 * SECONDS,
)
DAMAGED = Attack(
    "damaged run folders",
    "one file damaged, then resumed",
    prepare,
    folder_damages,
    run_damaged,
    per_round=1,
    seconds=2 * SECONDS,
)
TWO = Attack(
    "runs at once",
    "two or three runs of one configuration",
    prepare,
    lambda state: st.sampled_from([2, 3]),
    run_two,
    per_round=1,
    seconds=4 * SECONDS,
)
FULL_DISK = Attack(
    "full disks",
    "a disk of 0.1 to 20 MB, where the run needs about 15; then resumed with more",
    prepare,
    lambda state: st.integers(100, 20_000),
    run_full,
    per_round=1,
    seconds=3 * SECONDS,
)
RANKS = Attack(
    "lost ranks",
    "one of two ranks is killed or stopped; then resumed by one process",
    prepare,
    lambda state: st.builds(
        Loss,
        st.integers(0, 1),
        st.sampled_from([signal.SIGKILL, signal.SIGSTOP]),
        st.integers(1, STEPS - 1),
    ),
    run_ranks,
    per_round=1,
    seconds=3 * SECONDS,
)
