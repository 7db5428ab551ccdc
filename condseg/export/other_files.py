"""Writing a model as OpenVINO's files, or as a program of torch.export."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from condseg.export.contract import OUTPUTS, check_file, defaults_of, facts_of
from condseg.export.engines import ROOT, Arrays, imported
from condseg.export.nms import torch_nms
from condseg.export.onnx_file import exported_program, write_onnx
from condseg.zoo.checkpoint import Restored

FACTS = "facts.json"


def write_openvino(
    restored: Restored, path: str | os.PathLike[str], *, full_size: bool, licence: str
) -> None:
    """Writes a .xml and a .bin with float32 weights; it is converted from ONNX.

    Raises:
        ValueError: openvino, onnx or onnxscript is not installed, or a part cannot be exported.
    """
    openvino = imported("openvino", "openvino")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        write_onnx(restored, file, full_size=full_size, licence=licence, defaults=False)
        model = openvino.convert_model(file)
        for name, value in facts_of(restored, full_size, licence).items():
            model.set_rt_info(value, [ROOT, name])
        openvino.save_model(model, str(path), compress_to_fp16=False)


def write_torch(
    restored: Restored, path: str | os.PathLike[str], *, full_size: bool, licence: str
) -> None:
    """Writes a program that ``torch.export.load`` reads after ``import torchvision``."""
    program, _ = exported_program(restored, torch_nms, full_size)
    facts = json.dumps(facts_of(restored, full_size, licence))
    torch.export.save(program, path, extra_files={FACTS: facts})


class TorchProgram:
    """Executes what :func:`write_torch` wrote; an :class:`condseg.export.engines.Engine`."""

    def __init__(self, path: str | Path) -> None:
        files = {FACTS: ""}
        program = torch.export.load(str(path), extra_files=files)
        self.facts: Mapping[str, str] = json.loads(files[FACTS] or "{}")
        check_file(path, self.facts, OUTPUTS)
        self._call = program.module()
        self.inputs = tuple(program.example_inputs[1])
        self._defaults = defaults_of(self.facts)

    def __call__(self, inputs: Arrays) -> Arrays:
        given = {name: v for name, v in self._defaults.items() if name in self.inputs} | inputs
        tensors = {name: torch.from_numpy(value) for name, value in given.items()}
        with torch.inference_mode():
            results = self._call(**tensors)
        return {name: value.numpy() for name, value in zip(OUTPUTS, results, strict=True)}
