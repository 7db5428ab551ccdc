"""Draws what the dynamic layers of a checkpoint do on images, and prints how much they change.

python tools/inspect_layers.py condseg/data/tabletop/val --checkpoint runs/.../best.ckpt

(A file named inspect.py would hide Python's own module from the tools beside it.)
"""

import argparse
from pathlib import Path

from condseg.errors import user_errors
from condseg.inference import SCORE_THRESHOLD


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("inputs", nargs="+", help="image files, folders, patterns")
    parser.add_argument("--checkpoint", help="default: the newest run's best")
    parser.add_argument("--depth", help="depth map (16-bit PNG) of the image, or their folder")
    parser.add_argument("--score", type=float, default=SCORE_THRESHOLD,
                        help="min score of the detections whose classes an image has")  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--output", default="out/inspect", help="folder of the PNGs and the JSON")
    parser.add_argument("--figures", type=int, default=8,
                        help="max images whose pixels' kernels are drawn")  # fmt: skip
    args = parser.parse_args()
    with user_errors("smaller images, --device cpu"):
        from studies.inspection.figures import write_figures
        from studies.inspection.observe import inspect

        from condseg.inference.predictor import Predictor
        from condseg.zoo.checkpoint import newest_best

        checkpoint = args.checkpoint or newest_best()
        predictor = Predictor.from_checkpoint(checkpoint, args.device)
        result = inspect(predictor, args.inputs, args.score, args.depth)
        folder = Path(args.output)
        files = write_figures(result, folder, args.figures, checkpoint=str(checkpoint))
    print(result.table())
    counts = ", ".join(f"{name} in {len(at)}" for name, at in result.classes.items())
    print(
        f"\n{len(result.images)} images; detected with a score >= {args.score:g}: {counts or '-'}"
    )
    print("change: 0 % static, 100 % nothing in common; similarity: mean cosine of two experts")
    if len(result.images) < 2:
        print("change from image to image needs two images or more")
    for message in result.failed:
        print(f"error: {message}")
    print(f"written to {args.output}/: {', '.join(file.name for file in files)}")
    return 1 if result.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
