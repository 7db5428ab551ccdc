"""Pictures a second that the training's loader gives, by its workers."""

from __future__ import annotations

import argparse
import time
from itertools import islice
from typing import Any

from condseg.data.datamodule import DataModule
from studies.benchmarks.measure import Spread
from studies.benchmarks.session import Session


def add_arguments(parser: argparse.ArgumentParser) -> None:
    Session.add_arguments(parser)
    parser.add_argument("--data", default="tabletop", help="tabletop, or a folder in COCO format")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="processes")
    parser.add_argument("--batch_size", type=int, default=8, help="pictures")
    parser.add_argument("--short_side", type=int, default=800, help="of a picture, in pixels")
    parser.add_argument("--batches", type=int, default=10, help="of a sample")


def run(args: argparse.Namespace) -> None:
    """Measure, print, write.

    Raises:
        ValueError, OSError: a number is below its range, or the data are not there.
    """
    session = Session(args)
    if args.batches < 1:
        raise ValueError(f"batches is {args.batches}; 1 or more is allowed")
    short, batches = (64, 2) if args.quick else (args.short_side, args.batches)
    table = {}
    for workers in args.workers:
        rates = pictures_per_second(
            args.data, workers, args.batch_size, short, batches, min(args.rounds, 3)
        )
        table[str(workers)] = {
            "pictures/s (quartiles)": f"{rates.median:.1f} ({rates.low:.1f} to {rates.high:.1f})",
            "of": f"{args.data}, batches of {args.batch_size}, short side {short}",
        }
    session.tables["workers"] = table
    session.write("loader")


def pictures_per_second(
    data: str, workers: int, batch_size: int, short_side: int, batches: int, rounds: int
) -> Spread:
    """The rate at which batches come, once the first is there.

    Args:
        data: "tabletop" or a folder.
        workers: processes; 0 loads in line.
        batch_size, short_side: as in training.
        batches: of a sample.
        rounds: samples.
    """
    module = DataModule(
        data,
        batch_size=batch_size,
        workers=workers,
        short_sides=(short_side,),
        max_long_side=2 * short_side,
        val_short_side=short_side,
    )
    loader: Any = module.train_dataloader()
    rates = []
    for _ in range(rounds):
        batch = iter(loader)
        next(batch)
        start = time.perf_counter()
        count = sum(len(each) for each in islice(batch, batches))
        rates.append(count / (time.perf_counter() - start))
        del batch
    return Spread.of(rates)
