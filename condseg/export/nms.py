"""Non-maximum suppression in a graph: ONNX's operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, library
from torchvision.ops import nms


@library.custom_op(
    "condseg::nms",
    mutates_args=(),
    schema="(Tensor boxes, Tensor scores, Tensor threshold) -> Tensor",
)
def onnx_nms(boxes: Tensor, scores: Tensor, threshold: Tensor) -> Tensor:
    """NonMaxSuppression of ONNX, of all images and classes at once.

    A box takes part in the NMS of a class in which its score is above 0.

    Shape:
        boxes (B, N, 4), scores (B, K, N), threshold () -> rows (S, 3) of image, class and box.
    """
    kept = [
        (image, label, int(box))
        for image, of_image in enumerate(scores)
        for label, of_class in enumerate(of_image)
        for box in _kept(boxes[image], of_class, float(threshold))
    ]
    return torch.tensor(kept, dtype=torch.int64).reshape(-1, 3)


def _kept(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    index = (scores > 0).nonzero().squeeze(1)
    return index[nms(boxes[index], scores[index], threshold)]


@onnx_nms.register_fake
def _(boxes: Tensor, scores: Tensor, threshold: Tensor) -> Tensor:
    count = library.get_ctx().new_dynamic_size()
    return boxes.new_empty(count, 3, dtype=torch.int64)


def onnx_translation() -> dict[Callable[..., Any], Callable[..., Any]]:
    """``custom_translation_table`` of ``torch.onnx.export``."""
    from onnxscript import opset20 as op

    def translated(boxes: Any, scores: Any, threshold: Any) -> Any:
        most = op.Constant(value_ints=[torch.iinfo(torch.int64).max])
        zero = op.Constant(value_floats=[0.0])
        at = op.Reshape(threshold, op.Constant(value_ints=[1]))
        return op.NonMaxSuppression(boxes, scores, most, at, zero)

    return {torch.ops.condseg.nms.default: translated}
