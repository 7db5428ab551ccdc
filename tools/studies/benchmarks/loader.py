"""Images per second of the training's data loader, by number of workers."""

from __future__ import annotations

import argparse
import time
from itertools import islice
from typing import Any

from condseg.data.datamodule import DataModule
from studies.benchmarks.session import Session
from studies.measure import Spread


def add_arguments(parser: argparse.ArgumentParser) -> None:
    Session.add_arguments(parser)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="processes")


def run(args: argparse.Namespace) -> None:
    """Measure, print, write."""
    session = Session(args)
    short, batch_size, batches = (64, 2, 2) if args.quick else (800, 8, 10)
    table = {}
    for workers in args.workers:
        module = DataModule(
            "tabletop",
            batch_size=batch_size,
            workers=workers,
            short_sides=(short,),
            max_long_side=2 * short,
            val_short_side=short,
        )
        rates = images_per_second(module.train_dataloader(), batches, min(args.rounds, 3))
        table[str(workers)] = {
            "images/s (quartiles)": f"{rates.median:.1f} ({rates.q1:.1f} to {rates.q3:.1f})",
            "of": f"tabletop, batches of {batch_size}, short side {short}",
        }
    session.content["tables"]["workers"] = table
    session.write("loader")


def images_per_second(loader: Any, batches: int, rounds: int) -> Spread:
    """The rate of ``batches`` batches after the first, in each of several epochs."""
    rates = []
    for _ in range(rounds):
        iterator = iter(loader)
        next(iterator)
        start = time.perf_counter()
        count = sum(len(batch) for batch in islice(iterator, batches))
        rates.append(count / (time.perf_counter() - start))
        del iterator
    return Spread.of(rates)
