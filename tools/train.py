"""Trains: ``python tools/train.py --config quickstart.yaml``.

Configurations lie over each other: configs/default.yaml, each ``--config``, then ``--key value``.
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# oneDNN keeps the kernels that it compiled for each shape; a dynamic network on pictures of several
# sizes has more than the 1024 it keeps by itself, and compiling them again took a fifth of a step.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")

from condseg.cli.train import main

if __name__ == "__main__":
    cli = main(Path(__file__).resolve().parents[1] / "configs")
    if cli.trainer.is_global_zero:
        folder = cli.run_folder
        best = folder / "checkpoints" / "best.ckpt"
        print(f"\ncheckpoints, metrics.csv and pictures are in {folder}\nnext:")
        print(f"  python tools/eval.py --checkpoint {best}")
        picture, depth = cli.datamodule.val_dataset.files(0)
        also = f" --depth {depth}" if depth else ""
        print(f"  python tools/demo.py --checkpoint {best} {picture}{also}")
