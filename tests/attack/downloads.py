"""Downloads at once and from a server that misbehaves."""

from __future__ import annotations

import hashlib
import io
import os
import random
import zipfile
from dataclasses import dataclass
from pathlib import Path

from attack.forks import FaultError, Fork, RefusedError, check
from attack.rounds import Attack
from attack.values import Damage, damages
from hypothesis import strategies as st
from support.loopback import serving

from condseg.data.download import Archive, download

SECONDS = 100.0


@dataclass(frozen=True)
class Case:
    """Processes at once, bytes after which each connection breaks, and damage of the file."""

    processes: int
    breaks: list[int]
    damage: Damage | None


def prepare(folder: Path) -> dict[str, bytes]:
    random_ = random.Random(0)
    return {f"{n}.bin": random_.randbytes(1_000_000) for n in range(4)}


def cases(files: dict[str, bytes]) -> st.SearchStrategy[Case]:
    breaks = st.lists(st.integers(0, 4_000_000), max_size=3)
    damage = st.one_of(st.none(), st.none(), damages("flip 1", "cut", "tail", "empty"))
    return st.builds(Case, st.integers(1, 3), breaks, damage)


def run(files: dict[str, bytes], case: Case, folder: Path) -> None:
    """Each process ends with the whole data in place, or in one line; a call afterwards is right.

    Of a damaged file nothing is put in place.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        for name, content in files.items():
            zipped.writestr(f"val2017/{name}", content)
    whole = buffer.getvalue()
    digest = hashlib.md5(whole, usedforsecurity=False).hexdigest()
    archive = Archive("zips/val2017.zip", len(whole), digest, 5_000_000, "val2017")
    target = folder / "data"
    with serving() as server:
        served = case.damage.apply(whole) if case.damage else whole
        server.files["/zips/val2017.zip"] = served
        server.stop_after = list(case.breaks)
        reader, writer = os.pipe()

        def get(wait: bool) -> None:
            if wait:
                os.close(writer)
                os.read(reader, 1)
            try:
                download(target, [archive], server.url, timeout=5.0)
            except ValueError as error:
                check("\n" not in str(error) and "val2017" in str(error), f"message | {error}")
                raise RefusedError from error
            check(_right(target / "val2017", files), "not all files are in place")

        forks = [Fork(get, folder / f"{n}", group=False).start(True) for n in range(case.processes)]
        os.close(writer)
        os.close(reader)
        ends = [fork.wait(SECONDS) for fork in forks]
        faults = [end.fault for end in ends if end.fault]
        while not (faults or case.damage) and len(ends) < 10 and all(end.refused for end in ends):
            again = Fork(get, folder / "again", group=False).start(False)
            forks.append(again)
            ends = [*ends, again.wait(SECONDS)]
        for fork in forks:
            if not fork.closed:
                fork.close()
    if faults:
        raise FaultError(faults[0])
    if served != whole:
        check(not (target / "val2017").exists(), "a damaged file was unpacked")
        raise RefusedError
    check(not all(end.refused for end in ends), "never in place")
    left = sorted(path.name for path in target.iterdir() if path.name != "val2017")
    check(not [name for name in left if "lock" not in name], f"left over | {left}")


def _right(folder: Path, files: dict[str, bytes]) -> bool:
    return {path.name: path.read_bytes() for path in folder.iterdir()} == files


ATTACK = Attack(
    "downloads",
    "up to three downloads of a set into one folder at once, broken off, or of a damaged file",
    prepare,
    cases,
    run,
    per_round=2,
    seconds=5 * SECONDS,
)
