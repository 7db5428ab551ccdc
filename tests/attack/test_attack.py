"""Each attack in a small round; ``-m slow`` runs twenty."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.tiny import REPOSITORY, environment

ROUNDS = [pytest.param(1, marks=pytest.mark.tool), pytest.param(20, marks=pytest.mark.slow)]


@pytest.mark.parametrize("rounds", ROUNDS)
def test_no_faults(rounds: int, tmp_path: Path) -> None:
    result = tmp_path / "rows.json"
    path = f"{REPOSITORY}:{REPOSITORY / 'tests'}"
    command = [sys.executable, "-m", "attack", f"--rounds={rounds}", f"--json={result}"]
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
