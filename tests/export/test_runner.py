"""The runner without torch computes what condseg computes."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from condseg.ops.paste import paste

RUNNER = Path(__file__).parents[2] / "condseg" / "export" / "runner.py"
ENGINE = '''
import json
from types import SimpleNamespace as Namespace
import numpy as np

FACTS = {
    "format": "1", "classes": json.dumps([{"id": 3, "name": "box"}, {"id": 7, "name": "disc"}]),
    "short_side": "48", "max_long_side": "96", "masks": "logits", "mask_stride": "4",
    "mask_interpolation": "scores", "thresholds": json.dumps({"mask_threshold": 0.5}),
}


class SessionOptions:
    pass


class InferenceSession:
    """Stands in for onnxruntime's: one disc in the middle."""

    def __init__(self, path, options, providers):
        pass

    def get_modelmeta(self):
        return Namespace(custom_metadata_map=FACTS)

    def get_inputs(self):
        return [Namespace(name="images")]

    def run(self, _, inputs):
        count, channels, height, width = inputs["images"].shape
        assert (count, channels, height, width) == (1, 3, 48, 64)
        assert inputs["score_threshold"] == np.float32(0.25)
        logits = np.full((1, 16, 16), -9, np.float32)
        logits[0, 4:8, 4:12] = 9
        boxes = np.array([[16, 16, 48, 32]], np.float32)
        return [boxes, np.array([1]), np.array([0.75], np.float32), np.array([0]), logits]
'''
BLOCKED = """
import runpy, sys
for name in ("torch", "condseg", "cv2", "torchvision"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(name="runner", scope="module")
def runner_fixture():
    """The file, as it is copied."""
    spec = importlib.util.spec_from_file_location("runner", RUNNER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("size", "new"),
    [
        ((48, 64), (199, 265)),  # larger
        ((333, 250), (240, 180)),  # smaller
        ((96, 128), (48, 64)),  # by half
        ((90, 60), (30, 20)),  # by a third
        ((48, 64), (48, 64)),
    ],
)
def test_images_are_resized_as_in_the_training(runner, size, new) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    kind = cv2.INTER_AREA if new[0] * new[1] < size[0] * size[1] else cv2.INTER_LINEAR
    expected = cv2.resize(image, new[::-1], interpolation=kind)
    difference = np.abs(runner.resize(image, new).astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.005


@pytest.mark.parametrize(
    ("size", "original"),
    [((60, 90), (120, 181)), ((64, 96), (31, 47)), ((50, 50), (50, 50)), ((1, 96), (3, 290))],
)
def test_masks_are_enlarged_as_by_condseg(runner, size, original) -> None:
    torch.manual_seed(0)
    cells = (-(-size[0] // 32) * 8, -(-size[1] // 32) * 8)
    coarse = torch.randn(6, 1, 5, 6) * 6
    logits = torch.nn.functional.interpolate(coarse, cells, mode="bicubic")[:, 0]
    logits[0] = -9  # nothing
    logits[1] = 9  # everything
    expected = paste(logits, 4, size, original, 0.5).numpy()
    found = runner.enlarge(logits.numpy(), 4, size, original, 0.5)
    assert expected[2:].any()
    assert (found != expected).mean() <= 2e-5


def test_it_needs_neither_torch_nor_condseg(tmp_path) -> None:
    (tmp_path / "onnxruntime.py").write_text(ENGINE)
    Image.fromarray(np.full((96, 128, 3), 90, np.uint8)).save(tmp_path / "image.png")
    arguments = ["model.onnx", "image.png", "--score", "0.25", "--output", "drawn.png"]
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, str(RUNNER), *arguments],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "disc 0.750 32.0 32.0 96.0 64.0",
        "1 instances -> drawn.png",
    ]
    drawn = np.asarray(Image.open(tmp_path / "drawn.png"))
    changed = (drawn != 90).any(2)
    assert changed[48, 64]
    assert not changed[10:20, 10:20].any()
