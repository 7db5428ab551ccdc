"""Tunes and trains CondInst with each dynamic layer alike, and summarises what differs.

python tools/compare.py                                  # all variants and budgets: days
python tools/compare.py --budgets 200:336 --variants static odconv_1x se   # two cores, one night
python tools/compare.py --device cuda --budgets 2000:336 6000:3000 20000:3000 \\
    --output runs/comparison-cuda                        # ten times the budget, on a GPU
python tools/compare.py --data NUCLEI --budgets 200:80 --tuning-images 20  # a COCO data set

Each variant is trained with each learning rate and judged on the tuning images; then with the best
rate and other seeds, judged on the test images. Writes comparison.md, .json and .png into --output
after each training. The same command goes on where it was stopped.
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
    parser.add_argument("--budgets", nargs="+", default=["200:336", "600:336", "2000:3000"],
                        metavar="STEPS:IMAGES", help="of a training; images: of its training set; "
                        "default 200:336 600:336 2000:3000")  # fmt: skip
    parser.add_argument("--rates", nargs="+", type=float, default=[0.0005, 0.001, 0.002, 0.004],
                        help="learning rates that are tried; default 0.0005 0.001 0.002 "
                        "0.004")  # fmt: skip
    parser.add_argument("--seeds", type=int, default=5, help="final trainings of each variant")
    parser.add_argument("--tuning-seeds", type=int, default=1, help="trainings with each rate")
    parser.add_argument("--data", type=Path, help="folder of a COCO data set: tuning images are "
                        "taken from its training images, test images are its validation images; "
                        "default: generated tabletop scenes")  # fmt: skip
    parser.add_argument("--tuning-images", type=int, default=200)
    parser.add_argument("--test-images", type=int, default=400, help="of generated scenes")
    parser.add_argument("--styles", type=int, default=1, help="of generated scenes, 1 to 8: plain, "
                        "noisy, blurred, negative, foggy, ..., mixed")  # fmt: skip
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    parser.add_argument("--threads", type=int, default=1, help="of each training and the costs")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--output", type=Path, default=Path("runs/comparison"))
    parser.add_argument("--page", type=Path, help="a Markdown page whose table is replaced")
    parser.add_argument("arguments", nargs="*", help="after --: further ones of the trainings")
    args = parser.parse_args()
    args.config = args.config or CONFIGS
    with user_errors():
        compare(args, train=Path(__file__).parent / "studies" / "comparison" / "train.py")


if __name__ == "__main__":
    main()
