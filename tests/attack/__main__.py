"""Attacks condseg and prints what it survived.

PYTHONPATH=.:tests python -m attack --rounds 20
PYTHONPATH=.:tests python -m attack annotations images --rounds 100 --seed 7
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
os.environ |= {"NO_ALBUMENTATIONS_UPDATE": "1"}

import torch
from attack.all import ATTACKS
from attack.rounds import faults, run_attack, table

torch.set_num_threads(1)


def _cpu_seconds() -> float:
    """Of this process and its forks."""
    return sum(os.times()[:4])


def main() -> int:
    parser = argparse.ArgumentParser("attack", description=__doc__)
    names = [attack.name for attack in ATTACKS]
    parser.add_argument("attacks", nargs="*", metavar="attack", help=f"of {', '.join(names)}")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the counts and faults")
    options = parser.parse_args()
    if unknown := set(options.attacks) - set(names):
        parser.error(f"no attack {', '.join(unknown)}; there are {', '.join(names)}")
    gc.freeze()  # pages that forks share stay shared
    rows, start = [], time.monotonic()
    prepared: dict[Any, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for attack in ATTACKS:
            if attack.name not in (options.attacks or names):
                continue
            if attack.prepare not in prepared:
                base = folder / f"base{len(prepared)}"
                base.mkdir()
                prepared[attack.prepare] = attack.prepare(base)
            state, work = prepared[attack.prepare], folder / "work"
            row = run_attack(attack, state, options.rounds, options.seed, work)
            rows.append(row)
            counts = f"{row.name}: {row.cases} tried, {row.failed} faults"
            seconds = f"{time.monotonic() - start:.0f} s"
            print(f"{seconds}: {counts}\n{faults(row)}", file=sys.stderr, end="", flush=True)
    print(table(rows))
    print(
        f"seed {options.seed}, {time.monotonic() - start:.0f} s, {_cpu_seconds():.0f} s of the "
        f"processor; Python "
        f"{platform.python_version()}, torch {torch.__version__}"
    )
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows]))
    return 1 if any(row.faults for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
