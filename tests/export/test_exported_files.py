"""Exported files, executed by their engines; each takes a minute to write."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from support.tiny import REPOSITORY, environment, write_checkpoint

from condseg.export import SUFFIXES

RTMDET = {
    "channels": 24,
    "head": {"class_path": "condseg.models.RTMDetHead", "init_args": {"tower_convs": 1}},
    "pyramid": {"class_path": "condseg.models.FPN", "init_args": {"num_levels": 3}},
}
NETWORKS = {
    "fcos": {},
    "odconv": {"backbone": "condseg.layers.ODConv2d"},
    "dyconv": {"backbone": "condseg.layers.DyConv2d"},
    "condconv": {"backbone": "condseg.layers.CondConv2d"},
    "dynet": {"backbone": "condseg.layers.DyNetConv2d"},
    "deform": {"backbone": "condseg.layers.DeformConv2d"},
    "bifpn": {"pyramid": {"class_path": "condseg.models.BiFPN", "init_args": {"num_repeats": 1}}},
    "rgbd": {
        "mask_filter": {"class_path": "condseg.layers.DynamicDilatedPyramid2d"},
        "depth_channels": 8,
    },
    "rtmdet": RTMDET,
}


def written(folder, network, *more: str) -> subprocess.CompletedProcess[str]:
    options = dict(network)
    if "backbone" in options:
        backbone = {"name": "resnet18", "weights": None, "width": 8, "stem_width": 8}
        conv = {"class_path": options["backbone"]}
        options["backbone"] = backbone | {"conv": conv, "freeze_stages": 0, "norm": "batch"}
    checkpoint = write_checkpoint(folder / "tiny.ckpt", **options)
    return subprocess.run(
        [sys.executable, "tools/export.py", "--checkpoint", str(checkpoint), *more],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )


pytestmark = [pytest.mark.slow, pytest.mark.tool]


@pytest.mark.parametrize(
    ("name", "file_format"), [*((name, "onnx") for name in NETWORKS), ("fcos", "openvino")]
)
def test_is_equal_to_pytorch(name, file_format, tmp_path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip({"onnx": "onnxruntime"}.get(file_format, file_format))
    output = tmp_path / f"model{SUFFIXES[file_format]}"
    done = written(tmp_path, NETWORKS[name], f"--format={file_format}", f"--output={output}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("| equal |") == 5


def test_runner_and_masks_of_full_size(tmp_path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    done = written(tmp_path, {}, "--output", str(tmp_path / "full.onnx"), "--masks", "full")
    assert done.returncode == 0, done.stdout + done.stderr
    done = written(tmp_path, {}, "--output", str(tmp_path / "model.onnx"), "--no_verify")
    assert done.returncode == 0, done.stdout + done.stderr
    image = next((REPOSITORY / "condseg" / "data" / "tabletop" / "val").glob("*.jpg"))
    command = [sys.executable, "condseg/export/runner.py", str(tmp_path / "model.onnx"), str(image)]
    output = ["--score", "0", "--output", str(tmp_path / "drawn.png")]
    found = subprocess.run(
        [*command, *output],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert "instances ->" in found.stdout
