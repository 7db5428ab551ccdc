"""A small round of the attacks that take seconds; ``-m slow`` runs two of all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from attack import annotations
from attack.all import WITHOUT_TRAINING
from attack.rounds import Attack, faults, run_attack
from support.tiny import REPOSITORY, environment

QUICK = (
    replace(annotations.ATTACK, cases=annotations.small_cases),
    *(attack for attack in WITHOUT_TRAINING if attack is not annotations.ATTACK),
)


@pytest.mark.parametrize("attack", QUICK, ids=lambda attack: attack.name)
def test_one_round(attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In forks of this process, which has imported everything already."""
    for name in ("CXX", "XDG_CACHE_HOME"):  # which an attack sets
        monkeypatch.setenv(name, os.environ.get(name, ""))
    (tmp_path / "base").mkdir()
    row = run_attack(attack, attack.prepare(tmp_path / "base"), 1, 0, tmp_path / "work")
    assert row.cases == row.refused + row.loaded > 0, faults(row)


@pytest.mark.slow
def test_two_rounds_of_all(tmp_path: Path) -> None:
    result = tmp_path / "rows.json"
    path = f"{REPOSITORY}:{REPOSITORY / 'tests'}"
    done = subprocess.run(
        [sys.executable, "-m", "attack", "--rounds=2", f"--json={result}"],
        cwd=tmp_path,
        env=environment() | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    rows: list[dict[str, Any]] = json.loads(result.read_text())
    assert all(row["cases"] == row["refused"] + row["loaded"] > 0 for row in rows), done.stdout
