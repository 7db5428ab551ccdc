"""Lists the published models, as docs/models.md does."""

from collections.abc import Sequence

from condseg.cli.messages import command_parser


def main(args: Sequence[str] | None = None) -> None:
    command_parser(__doc__).parse_args(args)
    from condseg.zoo.registry import tables

    print(tables(), end="")
