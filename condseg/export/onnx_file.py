"""Writing a model as one ONNX file."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from condseg import __version__
from condseg.export.contract import OUTPUTS, facts_of, thresholds
from condseg.export.engines import imported
from condseg.export.graph import MAX_SIDE, ImagesToMasks
from condseg.export.nms import onnx_translation
from condseg.export.prepare import prepared
from condseg.zoo.checkpoint import Restored

OPSET = 20


def exported_program(restored: Restored, full_size: bool) -> tuple[ExportedProgram, list[str]]:
    """The model as ``torch.export`` writes it, and the names of its inputs."""
    network = prepared(restored.network)
    graph = ImagesToMasks(network, restored.postprocess).eval()
    height, width = 2 * 32 + 5, 3 * 32 + 7  # any size that is none of the special ones
    inputs = {"images": torch.zeros(2, 3, height, width, dtype=torch.uint8)}
    inputs |= thresholds(restored)
    if not full_size:
        del inputs["mask_threshold"]
    batch, rows, columns = Dim("batch"), Dim("height", max=MAX_SIDE), Dim("width", max=MAX_SIDE)
    shapes: dict[str, Any] = dict.fromkeys(inputs)
    shapes["images"] = {0: batch, 2: rows, 3: columns}
    if network.takes_depth:
        inputs["depth"] = torch.ones(2, height, width)
        shapes["depth"] = {0: batch, 1: rows, 2: columns}
    with torch.no_grad(), _quiet():
        program = torch.export.export(graph, (), inputs, dynamic_shapes=shapes, strict=False)
    return program, list(inputs)


def write_onnx(
    restored: Restored,
    path: str | os.PathLike[str],
    *,
    full_size: bool,
    defaults: bool = True,
) -> None:
    """Writes the model, whose thresholds are inputs, by default with defaults.

    Raises:
        ValueError: onnx or onnxscript is not installed, or a part cannot be exported.
    """
    onnx = imported("onnx", "onnx")
    imported("onnxscript", "onnx")
    program, names = exported_program(restored, full_size)
    with _quiet():
        converted = torch.onnx.export(
            program,
            input_names=names,
            output_names=list(OUTPUTS),
            opset_version=OPSET,
            external_data=False,
            custom_translation_table=onnx_translation(),
            verbose=False,
        )
    assert converted is not None
    model = converted.model_proto
    del model.graph.value_info[:]
    _name_axes(model.graph, full_size)
    for name, value in thresholds(restored).items():
        if defaults and name in names:
            model.graph.initializer.append(onnx.numpy_helper.from_array(value.numpy(), name))
    onnx.helper.set_model_props(model, facts_of(restored, full_size))
    model.producer_name, model.producer_version = "condseg", __version__
    onnx.checker.check_model(model)
    temporary = Path(path).with_suffix(".part")
    onnx.save(model, temporary)
    os.replace(temporary, path)


def _name_axes(graph: Any, full_size: bool) -> None:
    masks = ("height", "width") if full_size else ("mask_height", "mask_width")
    axes = {
        "images": ("batch", None, "height", "width"),
        "depth": ("batch", "height", "width"),
        **dict.fromkeys(OUTPUTS, ("instances", None)),
        "masks": ("instances", *masks),
    }
    for value in (*graph.input, *graph.output):
        dims = value.type.tensor_type.shape.dim
        for dim, name in zip(dims, axes.get(value.name, ()), strict=False):
            if name is not None:
                dim.Clear()
                dim.dim_param = name


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch.export and its ONNX exporter report of their own work."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
