"""Removes the parts of a mask that do not belong to its box."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor, from_numpy


def without_islands(
    masks: Bool[Tensor, "d h w"], boxes: Float[Tensor, "d 4"]
) -> Bool[Tensor, "d h w"]:
    """The masks without their parts that have no pixel in the box.

    A part is a set of pixels connected along sides or corners. Computed on the CPU.

    Args:
        masks: one per box.
        boxes: xyxy in pixels of the masks; a pixel is in a box that covers some of it.
    """
    import cv2  # late: reading a checkpoint does not need it

    kept = masks.cpu().numpy().copy()
    height, width = kept.shape[1:]
    limits = np.array([width, height])
    corners = boxes.cpu().numpy()
    first = np.clip(np.floor(corners[:, :2]).astype(int), 0, limits)
    end = np.clip(np.ceil(corners[:, 2:]).astype(int), 0, limits)
    for mask, (x1, y1), (x2, y2) in zip(kept, first, end, strict=True):
        x, y, w, h = cv2.boundingRect(mask.view(np.uint8))
        inside = x1 <= x and y1 <= y and x + w <= x2 and y + h <= y2
        if inside or w == 0:  # OpenCV 5.0 crashes on parts without a pixel
            continue
        part = mask[y : y + h, x : x + w]
        _, labels = cv2.connectedComponents(part.view(np.uint8).copy(), connectivity=8)
        in_box = labels[max(y1 - y, 0) : max(y2 - y, 0), max(x1 - x, 0) : max(x2 - x, 0)]
        part &= np.isin(labels, in_box)
    return from_numpy(kept).to(masks.device)
