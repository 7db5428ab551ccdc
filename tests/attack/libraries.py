"""Damaged libraries of the C++ kernels."""

from __future__ import annotations

import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

import torch
from attack.forks import Fork, check
from attack.rounds import Attack
from attack.values import Damage, damages
from hypothesis import strategies as st

from condseg import native
from condseg.layers.winograd import conv3x3
from condseg.native.build import load_library

SECONDS = 200.0
OWN = ("whole", "absent", "empty", "text", "folder", "link to nothing", "unreadable", "writable")


@dataclass(frozen=True)
class State:
    """The folder of the library, and whether there is one: it needs a compiler."""

    cache: Path
    built: bool


@dataclass(frozen=True)
class Case:
    what: str | Damage
    processes: int


def prepare(folder: Path) -> State:
    """Keeps the library; for each case a compiler only copies it."""
    compiler, cache, kept = folder / "c++", folder / "cache", folder / "kept.so"
    library = load_library()
    if library is not None:
        shutil.copyfile(library._name, kept)
    compiler.write_text(
        f'#!/bin/sh\nfor last; do :; done\ncase "$*" in *-shared*) exec cp {kept} "$last";; esac\n'
    )
    compiler.chmod(0o755)
    os.environ["CXX"] = str(compiler)
    os.environ["XDG_CACHE_HOME"] = str(cache)
    fork = Fork(lambda _: load_library.__wrapped__() is not None, folder / "log").start()
    ended = fork.wait(300)
    if not fork.closed:
        fork.close()
    assert ended.value or library is None, (folder / "log").read_text()
    return State(cache / "condseg", library is not None)


def cases(state: State) -> st.SearchStrategy[Case]:
    damage = damages("flip 1", "flip 8", "flip 400", "cut", "cut", "block", "tail", "empty")
    return st.builds(Case, st.one_of(st.sampled_from(OWN), damage, damage), st.integers(1, 3))


def run(state: State, case: Case, folder: Path) -> None:
    """The kernels compute what PyTorch does, or are not used."""
    if not state.built:
        return
    shutil.copytree(state.cache, folder / "condseg")
    (library,) = (folder / "condseg").glob("*.so")
    _damage(library, case.what)
    os.environ["XDG_CACHE_HOME"] = str(folder)

    def compute(_: object) -> bool:
        load_library.cache_clear()
        torch.manual_seed(0)
        x = torch.randn(1, 64, 48, 48).contiguous(memory_format=torch.channels_last)
        weight = torch.randn(64, 64, 3, 3)
        with torch.inference_mode():
            computed, right = conv3x3(x, weight), torch.conv2d(x, weight, padding=1)
        check(torch.allclose(computed, right, rtol=1e-3, atol=1e-2), "other numbers")
        return native.available()

    forks = [Fork(compute, folder / f"{n}", group=False).start() for n in range(case.processes)]
    for number, fork in enumerate(forks):
        ended = fork.wait(SECONDS)
        if not fork.closed:
            fork.close()
        check(not ended.fault, f"{ended.fault} | {(folder / f'{number}').read_text()[-300:]}")
        if case.what != "folder":
            check(ended.value, "not built again")


def _damage(library: Path, what: str | Damage) -> None:
    content = library.read_bytes()
    library.chmod(stat.S_IRUSR | stat.S_IWUSR)
    if isinstance(what, Damage):
        library.write_bytes(what.apply(content))
        return
    if what in ("absent", "folder", "link to nothing"):
        library.unlink()
    if what == "folder":
        library.mkdir()
    elif what == "link to nothing":
        library.symlink_to("nothing")
    elif what in ("empty", "text"):
        library.write_text("" if what == "empty" else "no library\n")
    elif what == "unreadable":
        library.chmod(0)
    elif what == "writable":
        library.chmod(0o777)


ATTACK = Attack(
    "libraries",
    "a damaged or absent library of the C++ kernels, loaded by up to three processes",
    prepare,
    cases,
    run,
    per_round=2,
    seconds=4 * SECONDS,
)
