"""The table of what was asked and what is reached, in one run."""

from __future__ import annotations

import argparse

from studies.benchmarks import mask_head, model, train
from studies.benchmarks.session import Session


def add_arguments(parser: argparse.ArgumentParser) -> None:
    Session.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Measure, print, write."""
    session = Session(args)
    for part in (mask_head, model, train):
        session.compare(part.comparisons(session.shapes, session.device))
    session.write("targets")
