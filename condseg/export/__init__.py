"""A trained model as one file for other engines, and prediction with such files."""

from typing import Literal

FileFormat = Literal["onnx", "openvino"]
"""An ONNX file; OpenVINO's pair of files."""

Masks = Literal["logits", "full"]
"""Mask logits of a quarter of the image's size, or masks of its size."""

EngineName = Literal["onnxruntime", "openvino"]

EXPORTED: dict[str, EngineName] = {".onnx": "onnxruntime", ".xml": "openvino"}
"""The engine of an exported file, by its ending."""

SUFFIXES: dict[FileFormat, str] = {"onnx": ".onnx", "openvino": ".xml"}
