"""Measures speed, memory and operations; tables in the docs are made by it.

python tools/benchmark.py layers --page docs/layers/README.md --output docs/layers
"""

import argparse
import os

# The profiler, which counts memory, otherwise reports each GPU that is not there as an error.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

from condseg.benchmarks import layers
from condseg.errors import user_errors

COMMANDS = {"layers": layers}
"""Name -> a module with a docstring, ``add_arguments(parser)`` and ``run(args)``."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="|".join(COMMANDS))
    for name, module in COMMANDS.items():
        about = (module.__doc__ or "").splitlines()[0]
        command = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
        module.add_arguments(command)
        command.add_argument("--rounds", type=int, default=30, help="samples of each time")
        command.add_argument("--device", default="cpu", help="auto, cpu, cuda, cuda:1, mps")
        command.add_argument("--output", default="out/benchmark", help="folder of JSON and plot")
        command.add_argument("--page", help="a Markdown page whose table is made anew")
    args = parser.parse_args()
    with user_errors():
        COMMANDS[args.command].run(args)


if __name__ == "__main__":
    main()
