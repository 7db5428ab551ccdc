"""Measures speed, memory and operations, and writes the tables of the docs.

python tools/benchmark.py targets --output docs/benchmarks    # or --device cuda
python tools/benchmark.py layers --page docs/layers/README.md --output docs/layers

targets     the table of all bars: dynamic parts, whole networks, training step
model       the whole evaluation: by stage, published form, torchvision's Mask R-CNN
rtmdet      RTMDet-Ins beside CondInst and torchvision's Mask R-CNN, at 640 x 640
train       a training step: published form, by stage
mask-head   the dynamic parts alone: mask head, post-process, FCOS head, local filters
annotations opening a json of COCO's size, beside pycocotools
loader      loading of training images (--data), beside torchvision's transforms
layers      each dynamic layer, relative to nn.Conv2d of the same shape
"""

import argparse
import os

# Without it, the profiler, which counts memory, reports an error for each missing GPU.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

from studies.benchmarks import annotations, layers, loader, model, parts, rtmdet, train
from studies.benchmarks.session import Benchmark

from condseg.errors import user_errors

COMMANDS = {
    "targets": Benchmark((parts.comparisons, model.comparisons, train.comparisons)).run,
    "model": Benchmark((model.comparisons,), model.curves, model.stages).run,
    "rtmdet": Benchmark((rtmdet.comparisons,)).run,
    "train": Benchmark((train.comparisons,), stages=train.stages).run,
    "mask-head": Benchmark((parts.comparisons,), parts.curves).run,
    "annotations": annotations.run,
    "layers": layers.run,
    "loader": loader.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--quick", action="store_true", help="small shapes, to try it")
    parser.add_argument("--rounds", type=int, default=30, help="max samples of each time")
    parser.add_argument("--seconds", type=float, default=20.0,
                        help="for the samples of a comparison, about; not of layers")  # fmt: skip
    parser.add_argument("--only", default="", help="only comparisons with this in their name")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--output", default="out/benchmark", help="folder of page, JSON, chart")
    parser.add_argument("--data", default="tabletop", help="of loader: a data set in COCO format")
    parser.add_argument("--page", help="of layers: a Markdown page whose table is replaced")
    args = parser.parse_args()
    with user_errors():
        for name in ("rounds", "seconds"):
            if getattr(args, name) < 1:
                raise ValueError(f"{name} is {getattr(args, name)}; 1 or more is allowed")
        COMMANDS[args.command](args)


if __name__ == "__main__":
    main()
