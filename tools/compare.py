"""Trains CondInst with each dynamic layer on the same budget, and summarises the results.

python tools/compare.py                              # nine variants, three seeds, two jobs
python tools/compare.py --variants static odconv_4x --seeds 5 --output runs/odconv
python tools/compare.py --jobs 1 --threads 8 --steps 3000 -- --data.batch_size=16

Writes comparison.md, .json and .png into --output after each training. Finished trainings are
kept, and interrupted ones are resumed by the same command.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# Without it, the profiler, which counts memory, reports an error for each missing GPU.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

from studies.comparison.compare import compare
from studies.comparison.variants import VARIANTS

from condseg.errors import user_errors

CONFIGS = ("quickstart.yaml", "comparison.yaml")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="append", help=f"may be repeated; default {CONFIGS}")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS,
                        metavar="NAME", help=f"of {', '.join(VARIANTS)}")  # fmt: skip
    parser.add_argument("--steps", type=int, default=300, help="of each training")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each variant")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    parser.add_argument("--threads", type=int, default=1, help="of each training and the costs")
    parser.add_argument("--device", default="auto", help="of the costs: auto, cpu, cuda, ...")
    parser.add_argument("--output", type=Path, default=Path("runs/comparison"))
    parser.add_argument("--page", type=Path, help="a Markdown page whose table is replaced")
    parser.add_argument("arguments", nargs="*", help="after --: further ones of the trainings")
    args = parser.parse_args()
    args.config = args.config or CONFIGS
    with user_errors():
        compare(args, train=Path(__file__).with_name("train.py"))


if __name__ == "__main__":
    main()
