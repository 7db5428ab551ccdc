"""Draws the instances that a checkpoint finds in images, and prints them.

python tools/demo.py street.jpg holiday/ "scans/*.png" --score 0.5
python tools/demo.py street.jpg --model condinst_r101_3x_sem   # published models: tools/models.py
"""

from collections.abc import Sequence

from condseg.cli.messages import add_model_options, command_parser
from condseg.errors import user_errors


def main(args: Sequence[str] | None = None) -> int:
    """Returns 1 if an input could not be processed, else 0."""
    parser = command_parser(__doc__)
    add_model_options(parser)
    parser.add_argument("inputs", nargs="+", help="image files, folders, patterns")
    parser.add_argument("--depth", help="depth map (16-bit PNG) of the image, or their folder")
    parser.add_argument("--score", type=float, default=0.4, help="min score that is shown")
    parser.add_argument("--output", default="out", help="folder of the drawn images")
    parser.add_argument("--json", action="store_true", help="also write detections.json there")
    options = parser.parse_args(args)
    with user_errors("smaller images, --device cpu"):
        from condseg.inference.annotate import annotate
        from condseg.inference.predictor import Predictor
        from condseg.zoo.pretrained import open_model

        restored = open_model(options.checkpoint, options.model, offline=options.offline)
        failed = annotate(
            Predictor(restored, options.device, precision=options.precision),
            options.inputs,
            options.output,
            options.score,
            options.json,
            options.depth,
        )
    return 1 if failed else 0
