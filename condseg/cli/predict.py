"""Draws the instances that a checkpoint finds in images and videos, and prints them.

condseg predict street.jpg holiday/ "scans/*.png" https://example.org/a.jpg --score 0.5
condseg predict clip.mp4                                  # also rtsp://..., 0 (a camera)
condseg predict photos/ --format coco labelme             # annotations to go on from
condseg predict street.jpg --model condinst_r101_3x_sem   # published: condseg models
"""

import argparse
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import get_args

from condseg.cli.messages import add_model_options, command_parser
from condseg.errors import user_errors
from condseg.inference import SCORE_THRESHOLD, ColorBy, Format, Outline


def parser() -> argparse.ArgumentParser:
    """Of the command's options."""
    parser = command_parser(__doc__)
    add_model_options(parser)
    parser.add_argument(
        "inputs",
        nargs="+",
        help="images, videos, folders, patterns, addresses, the number of a camera, - (lines of "
        "these on stdin)",
    )
    parser.add_argument("--depth", help="depth map (16-bit PNG) of the image, or their folder")
    parser.add_argument(
        "--score", type=float, default=SCORE_THRESHOLD, help="min score that is shown"
    )
    parser.add_argument("--output", default="out", help="folder of the drawn images")
    parser.add_argument("--json", action="store_true", help="same as --format coco-results")
    parser.add_argument(
        "--format",
        nargs="+",
        choices=get_args(Format),
        default=[],
        metavar="FORMAT",
        help=f"also write annotations as {', '.join(get_args(Format))}",
    )
    parser.add_argument(
        "--masks", choices=get_args(Outline), default="polygon", help="in annotations; or rle"
    )
    parser.add_argument(
        "--save_frames", action="store_true", help="also write the frames of videos as images"
    )
    parser.add_argument(
        "--color_by", choices=get_args(ColorBy), help="default: instance; track in videos"
    )
    parser.add_argument(
        "--class_agnostic_nms",
        action="store_true",
        default=None,
        help="also remove overlapping boxes of different classes",
    )
    parser.add_argument(
        "--drop_islands",
        dest="keep_islands",
        action="store_false",
        default=None,
        help="remove the parts of a mask outside its box",
    )
    return parser


def main(args: Sequence[str] | None = None) -> int:
    """Returns 1 if an input could not be processed, else 0."""
    options = parser().parse_args(args)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names in other encodings
    with user_errors("smaller images, --device cpu"):
        from condseg.export.predictor import open_predictor
        from condseg.inference.annotate import annotate
        from condseg.zoo.allowed import allowing

        results = ["coco-results"] if options.json else []
        formats = list(dict.fromkeys([*options.format, *results]))
        names = ("checkpoint", "model", "offline", "engine", "device", "precision")
        with allowing(options.allow):
            predictor = open_predictor(**{name: getattr(options, name) for name in names})
        print(predictor.restored)
        failed = annotate(
            predictor.with_options(
                class_agnostic_nms=options.class_agnostic_nms, keep_islands=options.keep_islands
            ),
            options.inputs,
            options.output,
            options.score,
            formats,
            options.masks,
            options.depth,
            options.color_by,
            options.save_frames,
            Path(options.model or options.checkpoint or "condseg").stem,
        )
    return 1 if failed else 0
