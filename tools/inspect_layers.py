"""Draws what the dynamic layers of a checkpoint do on pictures, and prints how much they do.

python tools/inspect_layers.py condseg/data/tabletop/val --checkpoint runs/.../best.ckpt

(A file named inspect.py would hide Python's own module of that name from all tools beside it.)
"""

import argparse
from pathlib import Path

from condseg.errors import user_errors


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("inputs", nargs="+", help="picture files, folders, patterns")
    parser.add_argument("--checkpoint", help="default: the newest run's best")
    parser.add_argument("--depth", help="depth map (16-bit PNG) of the picture, or their folder")
    parser.add_argument(
        "--score",
        type=float,
        default=0.4,
        help="least score at which a detection says that its class is in the picture",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--output", default="out/inspect", help="folder of the PNGs and the JSON")
    parser.add_argument(
        "--figures", type=int, default=8, help="pictures at most whose pixels' kernels are drawn"
    )
    args = parser.parse_args()
    with user_errors("smaller pictures, --device cpu"):
        from studies.inspection.figures import write_figures
        from studies.inspection.inspection import inspect

        from condseg.inference.predictor import Predictor
        from condseg.zoo.checkpoint import newest_best

        checkpoint = args.checkpoint or newest_best()
        predictor = Predictor.from_checkpoint(checkpoint, args.device)
        seen = inspect(predictor, args.inputs, args.score, args.depth)
        note = {"checkpoint": str(checkpoint)}
        files = write_figures(seen, Path(args.output), args.figures, **note)
    print(seen.table())
    counts = ", ".join(f"{name} in {len(at)}" for name, at in seen.classes.items())
    print(f"\n{len(seen.pictures)} pictures; found with a score >= {args.score:g}: {counts or '-'}")
    print("change: 0 % static, 100 % nothing in common; alike: mean cosine between two experts")
    if len(seen.pictures) < 2:
        print("what changes from picture to picture needs two pictures or more")
    for message in seen.failed:
        print(f"error: {message}")
    print(f"written to {args.output}/: {', '.join(file.name for file in files)}")
    return 1 if seen.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
