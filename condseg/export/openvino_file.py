"""Writing a model as OpenVINO's files."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from condseg.export.contract import facts_of
from condseg.export.engines import ROOT, imported
from condseg.export.onnx_file import write_onnx
from condseg.zoo.checkpoint import Restored


def write_openvino(restored: Restored, path: str | os.PathLike[str], *, full_size: bool) -> None:
    """Writes a .xml and a .bin with float32 weights; it is converted from ONNX.

    Raises:
        ValueError: openvino, onnx or onnxscript is not installed, or a part cannot be exported.
    """
    openvino = imported("openvino", "openvino")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        write_onnx(restored, file, full_size=full_size, defaults=False)
        model = openvino.convert_model(file)
        for name, value in facts_of(restored, full_size).items():
            model.set_rt_info(value, [ROOT, name])
        openvino.save_model(model, str(path), compress_to_fp16=False)
