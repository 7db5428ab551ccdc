"""Measures speed, memory and operations, and writes the tables of the docs.

python tools/benchmark.py targets --output docs/benchmarks    # or --device cuda
python tools/benchmark.py layers --page docs/layers/README.md --output docs/layers
"""

import argparse
import os

# Without it, the profiler, which counts memory, reports an error for each missing GPU.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

from studies.benchmarks import layers, loader, model, parts, targets, train

from condseg.errors import user_errors

COMMANDS = {
    "targets": targets,
    "model": model,
    "layers": layers,
    "mask-head": parts,
    "train": train,
    "loader": loader,
}
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
    args = parser.parse_args()
    with user_errors():
        COMMANDS[args.command].run(args)


if __name__ == "__main__":
    main()
