"""Light imports, so that commands start at once."""

import subprocess
import sys

import pytest
from support.tiny import environment, write_checkpoint

HEAVY = {"albumentations", "cv2", "huggingface_hub", "lightning", "pycocotools", "timm"}


@pytest.mark.tool
@pytest.mark.parametrize(
    "code",
    [
        "import condseg.zoo.checkpoint as zoo; zoo.restore('best.ckpt')",
        "import condseg.data.categories, condseg.data.download, condseg.data.files",
    ],
    ids=["restoring", "data"],
)
def test_no_package_of_training_or_data_is_imported(tmp_path, code):
    write_checkpoint(tmp_path / "best.ckpt")
    code += f"; import sys; print({HEAVY} & {{*sys.modules}})"
    command, env = [sys.executable, "-c", code], environment()
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, env=env)
    assert done.stdout.strip() == b"set()", done.stderr
