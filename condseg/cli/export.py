"""Writes a checkpoint as one file for other engines: from uint8 images to boxes and masks.

condseg export --checkpoint runs/quickstart/version_0/checkpoints/best.ckpt
condseg export --model condinst_r50_3x --format openvino --output out/r50.xml

The file is compared with PyTorch on images; the command ends with code 1 if they differ.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from condseg.cli.messages import add_allow_option, command_parser
from condseg.errors import user_errors
from condseg.export import SUFFIXES, FileFormat, Masks


def parser() -> argparse.ArgumentParser:
    """Of the command's options."""
    parser = command_parser(__doc__)
    parser.add_argument("--checkpoint", help="default: the newest run's best")
    parser.add_argument("--model", help="a published model, instead of --checkpoint")
    parser.add_argument("--offline", action="store_true", help="download nothing")
    add_allow_option(parser)
    parser.add_argument("--format", choices=get_args(FileFormat), default="onnx")
    parser.add_argument("--output", help="the file; default: out/export/model with its suffix")
    parser.add_argument(
        "--masks",
        choices=get_args(Masks),
        default="logits",
        help="logits of a quarter of the image's size, or masks of its size",
    )
    parser.add_argument("--images", type=Path, help="folder of images for the comparison")
    parser.add_argument("--no_verify", action="store_true", help="compare nothing")
    return parser


def main(args: Sequence[str] | None = None) -> int:
    """Returns 1 if the file computes something else than PyTorch, else 0."""
    options = parser().parse_args(args)
    with user_errors("--no_verify"):
        from condseg.export.export import export, read_photographs
        from condseg.export.verify import table
        from condseg.zoo.allowed import allowing
        from condseg.zoo.pretrained import open_model

        suffix = SUFFIXES[options.format]
        path = Path(options.output or f"out/export/model{suffix}")
        if path.suffix != suffix:
            raise ValueError(f"--output {path}: a file that ends with {suffix} is allowed")
        photographs = [] if options.no_verify else read_photographs(options.images)
        with allowing(options.allow):
            restored = open_model(options.checkpoint, options.model, offline=options.offline)
        print(restored)
        rows = export(restored, path, options.format, options.masks, photographs)
        if rows:
            print(table(rows))
        print(f"written to {path}")
    return 0 if all(row.passed for row in rows) else 1
