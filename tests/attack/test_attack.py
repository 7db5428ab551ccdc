"""A small round of the attacks that take seconds; ``-m slow`` runs ten of all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.tiny import REPOSITORY, environment

QUICK = ["annotations", "images", "damaged checkpoints", "hostile checkpoints", "recipes"]
QUICK += ["configurations", "killed runs", "downloads", "libraries"]


@pytest.mark.parametrize(
    ("attacks", "rounds"),
    [
        pytest.param(QUICK, 1, marks=pytest.mark.tool, id="quick"),
        pytest.param([], 10, marks=pytest.mark.slow, id="all"),
    ],
)
def test_no_faults(attacks: list[str], rounds: int, tmp_path: Path) -> None:
    result = tmp_path / "rows.json"
    path = f"{REPOSITORY}:{REPOSITORY / 'tests'}"
    command = [sys.executable, "-m", "attack", *attacks]
    command += [f"--rounds={rounds}", f"--json={result}"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment() | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    rows: list[dict[str, Any]] = json.loads(result.read_text())
    assert all(row["cases"] == row["refused"] + row["loaded"] > 0 for row in rows), done.stdout
