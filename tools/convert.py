"""Makes a condseg checkpoint of another project's CondInst or BoxInst.

python tools/convert.py CondInst_MS_R_50_3x.pth condinst_r50_3x.ckpt

It says which tensors it leaves out, and why. tools/eval.py and tools/demo.py take the result as
--checkpoint, tools/train.py as --init_from. Backbones need no conversion: they are given as
--model.network.backbone.weights.
"""

import argparse
import logging
from pathlib import Path

from condseg.errors import user_errors


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("input", help="a checkpoint of AdelaiDet or mmdetection")
    parser.add_argument("output", help="where the condseg checkpoint goes")
    parser.add_argument("--annotations", help="COCO json with its classes, where they are not COCO")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with user_errors():
        from condseg.zoo.checkpoint import save
        from condseg.zoo.pretrained import convert

        if Path(args.output).exists() and Path(args.output).samefile(args.input):
            raise ValueError(f"{args.output} is the input; name another file")
        content = convert(args.input, args.annotations)
        save(content, args.output)
    print(
        f"{content['source']}'s {args.input}, {len(content['state_dict'])} tensors -> {args.output}"
    )


if __name__ == "__main__":
    main()
