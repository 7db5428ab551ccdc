"""The values that pass between packages; ``CONTRIBUTING.md`` shows the data flow.

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
"""Whether training knows the masks of all objects, only their boxes, or masks of some."""


@dataclass(frozen=True, slots=True)
class Category:
    """A class of a COCO file; the ids may have gaps."""

    id: int
    name: str


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """Where an image comes from and its size in the batch.

    Attributes:
        image_id: id in the COCO file.
        file_name: path of the file.
        original_size: (height, width) of the image after EXIF rotation.
        size: (height, width) of the resized image in the top left corner of the batch.
    """

    image_id: int
    file_name: str
    original_size: Size
    size: Size


@dataclass(frozen=True, slots=True)
class Targets:
    """The objects of one image; N may be 0.

    Attributes:
        boxes: (N, 4) xyxy in pixels of the network's input.
        labels: (N,) contiguous classes 0..K-1, never COCO category ids.
        masks: (N, H, W) at the input's resolution (padded once batched); empty for an object of
            which only the box is known.
    """

    boxes: Float[Tensor, "n 4"]
    labels: Int64[Tensor, " n"]
    masks: Bool[Tensor, "n h w"]

    @property
    def has_mask(self) -> Bool[Tensor, " n"]:
        """(N,) whether the mask of an object is known."""
        return self.masks.flatten(1).any(dim=1)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Targets:
        values = (self.boxes, self.labels, self.masks)
        return Targets(*(value.to(device, non_blocking=non_blocking) for value in values))

    def pin_memory(self) -> Targets:
        return Targets(self.boxes.pin_memory(), self.labels.pin_memory(), self.masks.pin_memory())


@dataclass(frozen=True, slots=True)
class Sample:
    """One image with its objects, as a dataset returns it.

    Attributes:
        image: RGB, 0..255.
        targets: its objects, in the same pixels.
        info: where it comes from.
        depth: distance in the file's unit, 0 where it was not measured; None if the network takes
            no depth.
        lost_objects: number of objects of which the transform left no pixel.
        broken: why the file of the image that this one replaces cannot be used.
    """

    image: UInt8[Tensor, "3 h w"]
    targets: Targets
    info: ImageInfo
    depth: Float[Tensor, "h w"] | None = None
    lost_objects: int = 0
    broken: str | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples of one step, padded with zeros at the right and the bottom to a common size.

    Attributes:
        images: (B, 3, H, W) RGB, 0..255; the network normalizes them.
        targets: B entries, masks padded to H x W.
        infos: B entries.
        depth: (B, H, W), 0 in the padding and where it was not measured.
        lost_objects: sum over the samples.
        broken: of the samples that replace one.
    """

    images: UInt8[Tensor, "b 3 h w"]
    targets: tuple[Targets, ...]
    infos: tuple[ImageInfo, ...]
    depth: Float[Tensor, "b h w"] | None = None
    lost_objects: int = 0
    broken: tuple[str, ...] = ()

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
        """(height, width) of each image without its padding."""
        return tuple(info.size for info in self.infos)

    def __len__(self) -> int:
        return len(self.infos)


@dataclass(frozen=True, slots=True)
class Locations:
    """The L locations of all pyramid levels, level after level, row-major inside a level.

    Attributes:
        points: (L, 2) points (x, y) in pixels of the network's input; for CondInst, of the cells'
            centers.
        stride: (L,) pixels between neighbors of the level.
        level: (L,) index of the pyramid level, 0 is the finest.
        size_of_interest: (L,) pixels by which relative coordinates are divided.
        regression_range: (L, 2) min and max of an object's largest distance to a side, in pixels,
            for which the level is responsible.
    """

    points: Float[Tensor, "l 2"]
    stride: Float[Tensor, " l"]
    level: Int64[Tensor, " l"]
    size_of_interest: Float[Tensor, " l"]
    regression_range: Float[Tensor, "l 2"]


Index = int | slice | Tensor


@dataclass(frozen=True, slots=True)
class HeadPredictions:
    """What a dense head predicts at every location.

    A head whose scores are not the class scores alone returns a subclass.

    Attributes:
        class_logits: (B, L, K).
        ltrb: (B, L, 4) distances to left, top, right, bottom in strides of the level, >= 0.
        controller_features: one (B, C, h, w) map per level, the controller's input.
    """

    class_logits: Float[Tensor, "b l k"]
    ltrb: Float[Tensor, "b l 4"]
    controller_features: Sequence[Float[Tensor, "b c _h _w"]]

    @property
    def level_sizes(self) -> tuple[Size, ...]:
        """(height, width) of each level's map."""
        return tuple((f.shape[-2], f.shape[-1]) for f in self.controller_features)

    def class_scores(self, image: Index, location: Index = slice(None)) -> Float[Tensor, "*l k"]:
        """Class scores, 0..1, of an image, of pairs of image and location, or of all images."""
        return self.class_logits[image, location].float().sigmoid()

    def scores(self, image: Index, location: Index = slice(None)) -> Float[Tensor, "*l k"]:
        """The scores by which candidates are ranked, 0..1."""
        return self.class_scores(image, location)

    def final_scores(self, scores: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """The scores of detections, from those by which they were ranked."""
        return scores


@dataclass(frozen=True, slots=True)
class FCOSPredictions(HeadPredictions):
    """Predictions with FCOS's centerness.

    Source:
        FCOS (ICCV 2019), section 3.2; the square root is the official implementation's.
    """

    centerness_logits: Float[Tensor, "b l"]

    def scores(self, image: Index, location: Index = slice(None)) -> Float[Tensor, "*l k"]:
        """Class score x centerness."""
        centerness = self.centerness_logits[image, location].float().sigmoid()
        return self.class_scores(image, location) * centerness[..., None]

    def final_scores(self, scores: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """sqrt(class score x centerness)."""
        return scores.sqrt()


@dataclass(frozen=True, slots=True)
class DensePredictions:
    """What the network predicts before any detection is chosen.

    Attributes:
        head: predictions at every location.
        locations: where these are.
        mask_features: (B, Cm, H/8, W/8).
        image_size: (H, W) of the padded input.
        semantic_logits: (B, K, H/8, W/8), only in training with the semantic branch.
    """

    head: HeadPredictions
    locations: Locations
    mask_features: Float[Tensor, "b cm hm wm"]
    image_size: Size
    semantic_logits: Float[Tensor, "b k hm wm"] | None = None


@dataclass(frozen=True, slots=True)
class Assignment:
    """Which object each location is responsible for.

    Attributes:
        instance: (B, L) index into the image's own objects, -1 is background.
        labels: (B, L) class, K is background.
        ltrb: (B, L, 4) regression targets in strides of the level; zero for background.
        image_index, location_index: (P,) of the locations that have an object, image after image.
    """

    instance: Int64[Tensor, "b l"]
    labels: Int64[Tensor, "b l"]
    ltrb: Float[Tensor, "b l 4"]
    image_index: Int64[Tensor, " p"]
    location_index: Int64[Tensor, " p"]

    @classmethod
    def of(
        cls,
        instance: Int64[Tensor, "b l"],
        labels: Int64[Tensor, "b l"],
        ltrb: Float[Tensor, "b l 4"],
    ) -> Assignment:
        """Finds the locations that have an object, the one time that a step waits for them."""
        return cls(instance, labels, ltrb, *(instance >= 0).nonzero(as_tuple=True))


@dataclass(frozen=True, slots=True)
class MaskQueries:
    """The instances whose masks are computed; P may be 0.

    Attributes:
        params: (P, G) weights of all layers, then biases of all layers.
        points: (P, 2) the location (x, y) in pixels of the input, relative to mask features at the
            centers of their cells.
        size_of_interest: (P,) the pixels by which relative coordinates are divided.
        image_index: (P,) image in the batch.
    """

    params: Float[Tensor, "p g"]
    points: Float[Tensor, "p 2"]
    size_of_interest: Float[Tensor, " p"]
    image_index: Int64[Tensor, " p"]


@dataclass(frozen=True, slots=True)
class Detections:
    """The instances detected in one image, in pixels of the original image, best first.

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

    def above(self, score: float) -> Detections:
        """The detections with at least this score."""
        keep = self.scores >= score
        return Detections(self.boxes[keep], self.scores[keep], self.labels[keep], self.masks[keep])
