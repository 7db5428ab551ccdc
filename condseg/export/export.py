"""Exporting a checkpoint: the file, its comparison with PyTorch, and a description."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from condseg.data.files import TABLETOP
from condseg.data.images import read_image
from condseg.export import FileFormat, Masks
from condseg.export.contract import licence_of, thresholds
from condseg.export.engines import Engine, open_engine
from condseg.export.onnx_file import write_onnx
from condseg.export.openvino_file import write_openvino
from condseg.export.verify import MAX_BOX, MAX_MASK, Row, table, verify
from condseg.zoo.checkpoint import Restored

WRITERS = {"onnx": write_onnx, "openvino": write_openvino}


def export(
    restored: Restored,
    path: Path,
    file_format: FileFormat = "onnx",
    masks: Masks = "logits",
    photographs: Sequence[NDArray[np.uint8]] = (),
) -> list[Row]:
    """Writes the model and, beside it, ``MODEL.md``; compares it with PyTorch on photographs.

    Args:
        restored: the model.
        path: of the file.
        file_format: of the file.
        masks: what the output of that name is.
        photographs: three or more, (H, W, 3) RGB; none: nothing is compared.

    Returns:
        The comparison, by case.

    Raises:
        ValueError: what the format needs is not installed, or a part cannot be exported.
    """
    if next(restored.network.parameters()).device.type != "cpu":
        # A copy: the model stays where it is.
        restored = replace(restored, network=copy.deepcopy(restored.network).cpu())
    path.parent.mkdir(parents=True, exist_ok=True)
    WRITERS[file_format](restored, path, full_size=masks == "full")
    rows = verify(restored, opened(path, file_format), photographs) if photographs else []
    text = description(restored, path, masks, rows)
    path.with_name("MODEL.md").write_text(text, encoding="utf-8")
    return rows


def opened(path: Path, file_format: FileFormat) -> Engine:
    """The engine that the comparison uses."""
    return open_engine("onnxruntime" if file_format == "onnx" else "openvino", path)


def read_photographs(folder: Path | None) -> list[NDArray[np.uint8]]:
    """Three images of a folder, by default of the tabletop set.

    Raises:
        ValueError: it has fewer, or one cannot be read.
    """
    folder = folder or TABLETOP / "val"
    files = sorted(p for p in folder.glob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if len(files) < 3:
        raise ValueError(f"images {folder}: has {len(files)} JPEG or PNG files; 3 are needed")
    return [read_image(file) for file in files[:: max(1, len(files) // 3)][:3]]


def description(restored: Restored, path: Path, masks: Masks, rows: Sequence[Row]) -> str:
    """What a user of the file needs to know, in Markdown."""
    names = json.dumps([category.name for category in restored.categories], ensure_ascii=False)
    defaults = {name: f"{value.item():.6g}" for name, value in thresholds(restored).items()}
    if masks == "logits":
        del defaults["mask_threshold"]
        stride = restored.network.mask_head.out_stride
        shape = f"(D, h, w) float32, logits, a cell per {stride} pixels, of the padded images"
    else:
        shape = "(D, H, W) bool"
    inputs = "\n".join(f"- `{name}`: default {value}" for name, value in defaults.items())
    depth = (
        "\n- `depth`: (B, H, W) float32, distances in any unit, 0 where nothing was measured"
        if restored.network.takes_depth
        else ""
    )
    compared = (
        f"{table(rows)}\n\nEqual: the same detections, boxes within {MAX_BOX} px, at most "
        f"{MAX_MASK:g} of the mask pixels different."
        if rows
        else "Not compared."
    )
    return f"""# {path.name}

Instance segmentation, exported from {restored.source} by condseg.

Inputs:

- `images`: (B, 3, H, W) uint8, RGB, B images of one size, not padded; in training the short side
  was {restored.short_side}, the long side at most {restored.max_long_side}{depth}
{inputs}

Outputs, of D instances of all images, each image's best first:

- `boxes`: (D, 4) float32, x1, y1, x2, y2 in pixels of the input
- `labels`: (D,) int64, index into the classes
- `scores`: (D,) float32, 0..1
- `image_index`: (D,) int64, 0..B-1
- `masks`: {shape}

Classes: {names}

Licence of the weights: {licence_of(restored)}

## Comparison with PyTorch

{compared}
"""
