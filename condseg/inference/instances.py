"""The result of a prediction, for users: numpy arrays with names, drawing, and other formats."""

from __future__ import annotations

import base64
import html
import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, Shaped, UInt8
from numpy.typing import NDArray
from PIL import Image

from condseg.evaluation import to_records
from condseg.inference import ColorBy
from condseg.inference.drawing import draw, legible_scale, reduced
from condseg.structures import Category, Detections, ImageInfo, Size


@dataclass(frozen=True, eq=False, repr=False)
class Instances:
    """The instances found in one image, best first.

    ``found[index]`` selects some of them by an index, a slice, or an array of indices or booleans:
    ``found[found.scores > 0.5]``, ``found[found.names == "cup"]``. Iterating yields them one by
    one, each as ``Instances`` of length one.

    Attributes:
        boxes: (D, 4) xyxy in pixels of the image, right and bottom edges exclusive.
        scores: (D,) 0..1.
        labels: (D,) contiguous classes 0..K-1, never COCO category ids.
        masks: (D, H, W).
        categories: COCO id and name of class k at position k.
        image: RGB, 0..255, upright.
        source: path or address of the image; "" if it was given as pixels.
        tracks: (D,) number of each object in its video, from 1; 0 for none. None outside videos.
    """

    boxes: Float32[np.ndarray, "d 4"]
    scores: Float32[np.ndarray, " d"]
    labels: Int64[np.ndarray, " d"]
    masks: Bool[np.ndarray, "d h w"]
    categories: tuple[Category, ...]
    image: UInt8[np.ndarray, "h w 3"]
    source: str = ""
    tracks: Int64[np.ndarray, " d"] | None = None

    @classmethod
    def of(
        cls,
        detections: Detections,
        categories: Sequence[Category],
        image: UInt8[np.ndarray, "h w 3"],
        source: str = "",
    ) -> Instances:
        """The detections of a network in an image; tensors on the CPU are not copied."""
        return cls(
            detections.boxes.cpu().numpy(),
            detections.scores.cpu().numpy(),
            detections.labels.cpu().numpy(),
            detections.masks.cpu().numpy(),
            tuple(categories),
            image,
            source,
        )

    @property
    def names(self) -> Shaped[np.ndarray, " d"]:
        """(D,) the name of each instance's class."""
        return np.array([self.categories[k].name for k in self.labels], dtype=np.str_)

    @property
    def size(self) -> Size:
        """(height, width) of the image."""
        return self.image.shape[0], self.image.shape[1]

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: Any) -> Instances:
        rows = np.atleast_1d(np.arange(len(self))[index])
        return replace(
            self,
            boxes=self.boxes[rows],
            scores=self.scores[rows],
            labels=self.labels[rows],
            masks=self.masks[rows],
            tracks=None if self.tracks is None else self.tracks[rows],
        )

    def __iter__(self) -> Iterator[Instances]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        height, width = self.size
        where = f"{height} x {width}" + (f", {self.source}" if self.source else "")
        return f"Instances({describe(self.labels, self.scores, self.categories)}; {where})"

    def draw(self, *, color_by: ColorBy = "instance", scale: int = 1) -> Image.Image:
        """The image with masks, boxes, names and scores.

        Args:
            color_by: "class", the same color in all images; "instance", other than its
                neighbours'; or "track", the same color in all frames.
            scale: factor by which the image is enlarged first; small images need it for labels.

        Raises:
            ValueError: ``color_by`` is unknown, or "track" outside videos.
        """
        names = [category.name for category in self.categories]
        drawn = draw(
            self.image,
            self._detections(),
            names,
            scale=scale,
            color_by=color_by,
            tracks=self.tracks,
        )
        return Image.fromarray(drawn)

    def polygons(self) -> list[list[NDArray[np.float64]]]:
        """The outlines of each instance: for each of its parts the points (N, 2), xy in pixels.

        The outlines run along the edges of pixels and cut their inner corners, so that filling
        them (at the centres of pixels) yields the mask again, but for holes, which are filled.
        """
        return [_outlines(mask) for mask in self.masks]

    def to_coco(self, image_id: int = 0) -> list[dict[str, Any]]:
        """Records in COCO's results format, masks as RLE, with COCO's category ids."""
        info = ImageInfo(image_id, self.source, self.size, self.size)
        return to_records(info, self._detections(), self.categories)

    def to_supervision(self) -> Any:
        """``supervision.Detections`` with masks, class ids (labels) and class names.

        Raises:
            ImportError: supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise ImportError(
                "to_supervision needs supervision: pip install 'condseg[supervision]'"
            ) from error
        return supervision.Detections(
            xyxy=self.boxes,
            mask=self.masks,
            confidence=self.scores,
            class_id=self.labels,
            tracker_id=self.tracks,
            data={"class_name": self.names},
        )

    def _repr_html_(self) -> str:
        """What notebooks show: the drawing, and what is in it."""
        png = base64.b64encode(self._repr_png_()).decode("ascii")
        text = html.escape(repr(self))
        return f'<img src="data:image/png;base64,{png}" alt="{text}"><div>{text}</div>'

    def _repr_png_(self) -> bytes:
        """What consoles show that can show images, but not HTML."""
        drawn = self.draw(scale=legible_scale(*self.size))
        with io.BytesIO() as file:
            Image.fromarray(reduced(np.asarray(drawn))).save(file, "PNG")
            return file.getvalue()

    def _detections(self) -> Detections:
        # Copies: arrays of users may be read-only, which torch warns of.
        arrays = (self.boxes, self.scores, self.labels, self.masks)
        return Detections(*(torch.tensor(array) for array in arrays))


def describe(
    labels: Sequence[int] | NDArray[np.int64],
    scores: Sequence[float] | NDArray[np.float32],
    categories: Sequence[Category],
) -> str:
    """Number and scores by class: "2 cup (0.98, 0.71), 1 fork (0.60)"."""
    by_class: dict[str, list[str]] = defaultdict(list)
    for label, score in zip(labels, scores, strict=True):
        by_class[categories[label].name].append(f"{score:.2f}")
    texts = []
    for name, shown in by_class.items():
        listed = ", ".join(shown) if len(shown) <= 5 else f"{shown[0]} to {shown[-1]}"
        texts.append(f"{len(shown)} {name} ({listed})")
    return ", ".join(texts) or "nothing"


def _outlines(mask: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Outer outlines along the pixels' edges."""
    x, y, w, h = cv2.boundingRect(mask.view(np.uint8))
    # A lattice with the corners of the pixels at even and their centres at odd positions: a pixel
    # covers 3 x 3 of it, and contours, which run through the outermost positions, its corners.
    lattice = np.zeros((2 * h + 1, 2 * w + 1), dtype=np.uint8)
    lattice[1::2, 1::2] = mask[y : y + h, x : x + w]
    lattice = np.asarray(cv2.dilate(lattice, np.ones((3, 3), dtype=np.uint8)))
    contours, _ = cv2.findContours(lattice, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [contour[:, 0] / 2 + (x, y) for contour in contours]
