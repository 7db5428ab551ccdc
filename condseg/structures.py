"""The values that cross a border between rooms; see ``CONTRIBUTING.md`` for the way they go.

B images, C channels, H x W padded size, L locations of all levels, K classes, G generated
parameters, N objects of an image, P chosen locations of a batch, D detections of an image.
Sizes are (height, width) in pixels, points (x, y), boxes (x1, y1, x2, y2) with the right and
bottom edge exclusive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

Size = tuple[int, int]
Supervision = Literal["masks", "boxes", "mixed"]
"""What is known of the objects: of all the mask, of all the box alone, of some this, some that."""


@dataclass(frozen=True, slots=True)
class Category:
    """A class of a COCO file.

    Attributes:
        id: id in the file; ids may have gaps.
        name: name shown to people.
    """

    id: int
    name: str


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """Where a picture comes from and how it lies in the batch.

    Attributes:
        image_id: id in the COCO file (or the position, for pictures without one).
        file_name: path as it was read, for messages and for drawing.
        original_size: (height, width) of the picture as people see it, after EXIF rotation.
        size: (height, width) of the resized picture in the top left corner of the batch.
    """

    image_id: int
    file_name: str
    original_size: Size
    size: Size


@dataclass(frozen=True, slots=True)
class Targets:
    """The objects of one picture; N may be 0.

    Attributes:
        boxes: (N, 4) xyxy in pixels of the network's input.
        labels: (N,) contiguous classes 0..K-1, never COCO category ids.
        masks: (N, H, W) at the input's resolution (the padded one once batched); without a pixel
            for an object of which only the box is known.
    """

    boxes: Float[Tensor, "n 4"]
    labels: Int64[Tensor, " n"]
    masks: Bool[Tensor, "n h w"]

    @property
    def has_mask(self) -> Bool[Tensor, " n"]:
        """(N,) whether more than the box is known of an object."""
        return self.masks.flatten(1).any(dim=1)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Targets:
        return Targets(
            self.boxes.to(device, non_blocking=non_blocking),
            self.labels.to(device, non_blocking=non_blocking),
            self.masks.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> Targets:
        return Targets(self.boxes.pin_memory(), self.labels.pin_memory(), self.masks.pin_memory())


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture with its objects, as a dataset gives it.

    Attributes:
        image: (3, H, W) RGB, 0..255.
        targets: its objects, in the same pixels.
        info: where it comes from.
        depth: (H, W) distance of what each pixel shows, in the file's own unit; 0 where it was
            not measured. None where the network takes no depth.
    """

    image: UInt8[Tensor, "3 h w"]
    targets: Targets
    info: ImageInfo
    depth: Float[Tensor, "h w"] | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples of one step, padded with zeros at the right and the bottom to a common size.

    Attributes:
        images: (B, 3, H, W) RGB, 0..255; the network normalises, then blanks the padding.
        targets: B entries, masks padded to H x W.
        infos: B entries.
        depth: (B, H, W), of all samples or of none; the padding is 0 like what was not measured.
    """

    images: UInt8[Tensor, "b 3 h w"]
    targets: tuple[Targets, ...]
    infos: tuple[ImageInfo, ...]
    depth: Float[Tensor, "b h w"] | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        return replace(
            self,
            images=self.images.to(device, non_blocking=non_blocking),
            targets=tuple(t.to(device, non_blocking) for t in self.targets),
            depth=None if self.depth is None else self.depth.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> Batch:
        return replace(
            self,
            images=self.images.pin_memory(),
            targets=tuple(t.pin_memory() for t in self.targets),
            depth=None if self.depth is None else self.depth.pin_memory(),
        )

    @property
    def sizes(self) -> tuple[Size, ...]:
        """(height, width) of each picture inside the padding."""
        return tuple(info.size for info in self.infos)

    def __len__(self) -> int:
        return len(self.infos)


@dataclass(frozen=True, slots=True)
class DensePredictions:
    """What the network says at every location, before any choice.

    Attributes:
        class_logits: (B, L, K), levels in order, row-major inside a level.
        ltrb: (B, L, 4) distances to left, top, right, bottom, in strides of the level.
        centerness_logits: (B, L); None of a head whose class scores say how good the box is.
        controller_features: one (B, C, h, w) map a level, the controller's input (its output, in
            the head's reference form).
        mask_features: (B, Cm, H/8, W/8).
        semantic_logits: (B, K, H/8, W/8), only in training with the semantic loss.
    """

    class_logits: Float[Tensor, "b l k"]
    ltrb: Float[Tensor, "b l 4"]
    centerness_logits: Float[Tensor, "b l"] | None
    controller_features: Sequence[Float[Tensor, "b c _h _w"]]
    mask_features: Float[Tensor, "b cm hm wm"]
    semantic_logits: Float[Tensor, "b k hm wm"] | None = None

    @property
    def level_sizes(self) -> tuple[Size, ...]:
        """(height, width) of each level's map."""
        return tuple((f.shape[-2], f.shape[-1]) for f in self.controller_features)


@dataclass(frozen=True, slots=True)
class Assignment:
    """Which object each location is responsible for.

    Attributes:
        instance: (B, L) index into the image's own objects, -1 is background.
        labels: (B, L) class, K is background.
        ltrb: (B, L, 4) regression targets in strides of the level; zero for background.
    """

    instance: Int64[Tensor, "b l"]
    labels: Int64[Tensor, "b l"]
    ltrb: Float[Tensor, "b l 4"]


@dataclass(frozen=True, slots=True)
class MaskQueries:
    """The instances that get a mask; P may be 0.

    Attributes:
        params: (P, G) weights of all layers, then biases of all layers.
        points: (P, 2) the location (x, y) in pixels of the input.
        size_of_interest: (P,) the pixels by which relative coordinates are divided.
        image_index: (P,) picture in the batch.
        instance_index: (P,) object of that picture (training); -1 where there is none.
    """

    params: Float[Tensor, "p g"]
    points: Float[Tensor, "p 2"]
    size_of_interest: Float[Tensor, " p"]
    image_index: Int64[Tensor, " p"]
    instance_index: Int64[Tensor, " p"]


@dataclass(frozen=True, slots=True)
class Detections:
    """The instances found in one picture, in the ORIGINAL picture's pixels, best first.

    Attributes:
        boxes: (D, 4) xyxy.
        scores: (D,) 0..1.
        labels: (D,) contiguous classes 0..K-1.
        masks: (D, H, W).
    """

    boxes: Float[Tensor, "d 4"]
    scores: Float[Tensor, " d"]
    labels: Int64[Tensor, " d"]
    masks: Bool[Tensor, "d h w"]

    def __len__(self) -> int:
        return len(self.scores)
