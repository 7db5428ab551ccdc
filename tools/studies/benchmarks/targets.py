"""The table of all bars: dynamic parts, whole networks, training step."""

from __future__ import annotations

import argparse

from studies.benchmarks import model, parts, train
from studies.benchmarks.session import Session

add_arguments = Session.add_arguments


def run(args: argparse.Namespace) -> None:
    """Measure, print, write."""
    session = Session(args)
    for part in (parts, model, train):
        session.compare(part.comparisons(session.shapes, session.device))
    session.write("targets")
