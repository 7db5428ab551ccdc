"""Box and mask AP of a checkpoint, by pycocotools.

condseg eval                                        # the newest run, on its own data
condseg eval --checkpoint runs/quickstart/version_0/checkpoints/best.ckpt --data tabletop
condseg eval --model condinst_r50_3x --data data/coco       # published: condseg models
condseg eval --annotations instances_val.json --images val --batch_size 4
torchrun --nproc_per_node 2 -m condseg eval --data data/coco        # on two GPUs
"""

import argparse
from collections.abc import Sequence

from condseg.cli.messages import add_model_options, command_parser
from condseg.errors import user_errors


def parser() -> argparse.ArgumentParser:
    """Of the command's options."""
    parser = command_parser(__doc__)
    add_model_options(parser)
    parser.add_argument("--data", help="tabletop, or a folder; default: as in training")
    parser.add_argument("--annotations", help="COCO json, instead of the one found in --data")
    parser.add_argument("--images", help="folder of its images")
    parser.add_argument("--batch_size", type=int, default=1, help="images per step and process")
    parser.add_argument("--workers", type=int, default=2, help="processes that load images")
    parser.add_argument(
        "--score_threshold", type=float, help="min score that is shown; default: as in training"
    )
    parser.add_argument("--max_detections", type=int, help="per image; default: as in training")
    parser.add_argument("--output", default="out/eval", help="folder of the JSON files")
    parser.add_argument(
        "--visibility",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="evaluate only objects of this visible share, such as 0 0.7 for occluded ones",
    )
    return parser


def main(args: Sequence[str] | None = None) -> None:
    options = vars(parser().parse_args(args))
    options["visibility"] = options["visibility"] and tuple(options["visibility"])
    settings = {
        key: options.pop(key)
        for key in ("device", "score_threshold", "max_detections", "precision")
    }
    source = {key: options.pop(key) for key in ("checkpoint", "model", "offline", "engine")}
    packages = options.pop("allow")
    with user_errors("--batch_size 1, a lower --max_detections, --device cpu"):
        import torch

        from condseg.evaluation import Report
        from condseg.export.predictor import open_predictor
        from condseg.inference.evaluate import evaluate, is_main_process
        from condseg.inference.stages import Stages
        from condseg.zoo.allowed import allowing

        with allowing(packages):
            predictor = open_predictor(**source, **settings)
        stages = Stages(torch.device("cpu"))  # without waiting for a GPU
        if is_main_process():
            print(predictor.restored)

        def show(report: Report, speed: float) -> None:
            print(f"{report.table()}\n\n{speed:.2f} images/s; time by stage:\n{stages.table()}")

        evaluate(predictor, **options, stages=stages, on_report=show)
        if is_main_process():
            print(f"written to {options['output']}/")
