"""Restoring a checkpoint is light."""

import subprocess
import sys
from pathlib import Path

from support.tiny_model import write_checkpoint


def test_restoring_imports_no_package_of_training_or_data(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "best.ckpt")
    code = f"""
import sys
from condseg.zoo.checkpoint import restore
restore({str(path)!r})
heavy = {{"albumentations", "cv2", "huggingface_hub", "lightning", "pycocotools", "timm"}}
sys.exit(", ".join(heavy & sys.modules.keys()) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
