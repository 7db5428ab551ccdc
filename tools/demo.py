"""Draws the instances that a checkpoint finds in pictures, and prints them.

python tools/demo.py street.jpg holiday/ "scans/*.png" --score 0.5
python tools/demo.py street.jpg --model condinst_r101_3x_sem   # fetched once; tools/models.py
"""

import argparse

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
    parser.add_argument("--model", help="a published one; condinst_r50_3x where nothing is trained")
    parser.add_argument("--offline", action="store_true", help="fetch nothing")
    parser.add_argument("--score", type=float, default=0.4, help="least score that is shown")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--precision", default="32-true", help="or bf16-mixed, often faster")
    parser.add_argument("--output", default="out", help="folder of the drawings")
    parser.add_argument("--json", action="store_true", help="write detections.json there, too")
    args = parser.parse_args()
    with user_errors("smaller pictures, --device cpu"):
        from condseg.inference.annotate import annotate
        from condseg.inference.predictor import Predictor
        from condseg.zoo.pretrained import open_model

        restored = open_model(args.checkpoint, args.model, offline=args.offline)
        predictor = Predictor(restored, args.device, precision=args.precision)
        options = args.output, args.score, args.json, args.depth
        failed = annotate(predictor, args.inputs, *options)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
