"""Lists the published models, as docs/models.md does.

condseg models             # --check asks the servers for each file
condseg predict street.jpg --model condinst_r50_3x   # downloads it the first time
"""

import argparse
from collections.abc import Sequence

from condseg.cli.messages import command_parser


def parser() -> argparse.ArgumentParser:
    """Of the command's options."""
    parser = command_parser(__doc__)
    parser.add_argument(
        "--check", action="store_true", help="ask the servers whether they have each file"
    )
    return parser


def main(args: Sequence[str] | None = None) -> int:
    """Returns 1 if ``--check`` finds a file that cannot be downloaded, else 0."""
    if parser().parse_args(args).check:
        from condseg.zoo.check import check_files, check_table

        answers = list(check_files())
        print(check_table(answers), end="")
        return int(any(answer.error for answer in answers))
    from condseg.zoo.registry import tables

    print(tables(), end="")
    return 0
