"""Rounds of an attack: cases from Hypothesis, each in a fork, counted in a table."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
from attack.forks import Ended, Fork
from hypothesis import HealthCheck, Phase
from hypothesis.strategies import SearchStrategy


@dataclass(frozen=True)
class Attack:
    """One row of the table.

    Attributes:
        name: of the row.
        tried: what a case does.
        prepare: writes files that all cases read; its result goes to ``cases`` and ``run``.
        cases: the strategy from which cases are drawn.
        run: tries a case with a folder of its own. It returns if the result is right, and raises
            RefusedError if the input is refused as it should be; all else is a fault.
        per_round: cases of a round.
        seconds: after which a case is a fault.
    """

    name: str
    tried: str
    prepare: Callable[[Path], Any]
    cases: Callable[[Any], SearchStrategy[Any]]
    run: Callable[[Any, Any, Path], None]
    per_round: int
    seconds: float = 60.0


@dataclass
class Row:
    """The counts of an attack, and its faults: description -> first case and count."""

    name: str
    tried: str
    cases: int = 0
    refused: int = 0
    loaded: int = 0
    faults: dict[str, list[Any]] = field(default_factory=dict)

    def add(self, ended: Ended, case: Any) -> None:
        self.cases += 1
        if not ended.fault:
            self.refused += ended.refused
            self.loaded += not ended.refused
            return
        # The same message with other numbers and names is the same fault; details follow " | ".
        key = re.sub(r"[\d.]+|'[^']{12,}'|/\S+", "#", ended.fault.partition(" | ")[0])[:120]
        known = self.faults.setdefault(key, [ended.fault, repr(case)[:400], 0])
        known[2] += 1

    @property
    def failed(self) -> int:
        return sum(count for _, _, count in self.faults.values())


def run_attack(attack: Attack, state: Any, rounds: int, seed: int, folder: Path) -> Row:
    """Tries ``rounds * per_round`` cases, fewer if there are no more different ones.

    ``state`` is what ``attack.prepare`` returned.
    """
    row = Row(attack.name, attack.tried)
    folder.mkdir()
    work = folder / "case"
    fork = Fork(lambda case: attack.run(state, case, work), folder / "log")

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=rounds * attack.per_round,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(attack.cases(state))
    def try_case(case: Any) -> None:
        nonlocal fork
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        if fork.closed:
            fork = Fork(lambda case: attack.run(state, case, work), folder / "log")
        row.add(fork.start(case).wait(attack.seconds), case)

    try_case()
    if not fork.closed:
        fork.close()
    shutil.rmtree(folder)
    return row


def table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    lines = ["| attack | a case | tried | refused | right | faults |", "|---|---|--:|--:|--:|--:|"]
    lines += [
        f"| {r.name} | {r.tried} | {r.cases} | {r.refused} | {r.loaded} | {r.failed} |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"


def faults(row: Row) -> str:
    """The faults of an attack, the most frequent first."""
    known = sorted(row.faults.values(), key=lambda fault: -fault[2])
    return "".join(
        f"  {count} x {' '.join(fault.split())[:300]}\n    first: {case}\n"
        for fault, case, count in known
    )
