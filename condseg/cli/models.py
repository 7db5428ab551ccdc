"""Lists the published models, as docs/models.md does."""

import argparse
from collections.abc import Sequence


def main(args: Sequence[str] | None = None) -> None:
    argparse.ArgumentParser(description=__doc__, allow_abbrev=False).parse_args(args)
    from condseg.zoo.registry import tables

    print(tables(), end="")
