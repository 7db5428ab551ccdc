"""Box and mask AP of a checkpoint, by pycocotools.

python tools/eval.py --checkpoint runs/quickstart/version_0/checkpoints/best.ckpt
torchrun --nproc_per_node 2 tools/eval.py --checkpoint ... --data data/coco
python tools/eval.py --model condinst_r50_3x --data data/coco   # a published one; tools/models.py
"""

import argparse

from condseg.errors import user_errors


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--checkpoint", help="default: the newest run's best")
    parser.add_argument("--model", help="a published one; condinst_r50_3x where nothing is trained")
    parser.add_argument("--offline", action="store_true", help="fetch no model")
    parser.add_argument("--data", help="tabletop, or a folder; default: as in the training")
    parser.add_argument("--annotations", help="a COCO json instead of what is found in --data")
    parser.add_argument("--images", help="the folder of its pictures")
    parser.add_argument("--batch_size", type=int, default=1, help="in each process")
    parser.add_argument("--workers", type=int, default=2, help="that read pictures")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--score_threshold", type=float, help="default: as in the training")
    parser.add_argument("--max_detections", type=int, help="a picture; default: as in the training")
    parser.add_argument("--precision", default="32-true", help="or bf16-mixed, often faster")
    parser.add_argument("--output", default="out/eval", help="folder of the JSON files")
    parser.add_argument(
        "--visibility",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="judge only objects of which this share shows, such as 0 0.7 for occluded ones",
    )
    args = vars(parser.parse_args())
    args["visibility"] = args["visibility"] and tuple(args["visibility"])
    settings = [args.pop(k) for k in ("device", "score_threshold", "max_detections", "precision")]
    source = [args.pop(k) for k in ("checkpoint", "model")]
    offline = args.pop("offline")
    with user_errors("--batch_size 1, a lower --max_detections, --device cpu"):
        from condseg.inference.predictor import Predictor, evaluate, is_main_process
        from condseg.inference.stages import Stages
        from condseg.zoo.pretrained import open_model

        predictor = Predictor(open_model(*source, offline=offline), *settings)
        stages = Stages(predictor.device)
        report, speed = evaluate(predictor, **args, stages=stages)
        if is_main_process():
            print(f"{report.table()}\n\n{speed:.2f} pictures/s; of the time went to")
            print(f"{stages.table()}\nwritten to {args['output']}/")


if __name__ == "__main__":
    main()
