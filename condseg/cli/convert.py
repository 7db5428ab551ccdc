"""Converts another project's CondInst or BoxInst to a condseg checkpoint.

condseg convert CondInst_MS_R_50_3x.pth condinst_r50_3x.ckpt
condseg convert model_final.pth mine.ckpt --annotations instances_val.json

Tensors that are left out are logged with the reason. Use the result as --checkpoint of
condseg eval and predict, or as --init_from of condseg train. Backbones need no conversion:
--model.network.backbone.weights.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from condseg.cli.messages import command_parser
from condseg.errors import user_errors


def parser() -> argparse.ArgumentParser:
    """Of the command's options."""
    parser = command_parser(__doc__)
    parser.add_argument("input", help="checkpoint of AdelaiDet or mmdetection")
    parser.add_argument("output", help="the condseg checkpoint to write")
    parser.add_argument("--annotations", help="COCO json of its classes, if they are not COCO's")
    return parser


def main(args: Sequence[str] | None = None) -> None:
    options = parser().parse_args(args)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with user_errors():
        from condseg.zoo.checkpoint import save
        from condseg.zoo.pretrained import convert

        if Path(options.output).exists() and Path(options.output).samefile(options.input):
            raise ValueError(f"{options.output} is the input; choose another file")
        content = convert(options.input, options.annotations)
        save(content, options.output)
    count = len(content["state_dict"])
    print(f"{content['source']}'s {options.input}, {count} tensors -> {options.output}")
