"""BoxInst's losses: masks learned from boxes and the colors of the image."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from condseg.ops import boxinst
from condseg.ops.distributed import mean_over_ranks
from condseg.ops.masks import sample_at_stride
from condseg.structures import Batch


class BoxInstLoss(nn.Module):
    """Projection and pairwise losses of the masks of objects of which only the boxes are known.

    The projection loss compares a mask's extent in x and y with its box. The pairwise loss is low
    if neighbors of similar color inside the box have the same label; its weight grows linearly
    from 0 to 1 over the first ``warmup_steps`` steps, which the checkpoint counts.

    Args:
        threshold: min color similarity of neighbors that count as similar, 0..1.
        size: side of the window of neighbors, odd.
        dilation: distance of the neighbors, in cells of the masks.
        warmup_steps: see above; with 0 the weight is always 1.
        bottom_pixels_removed: rows at the bottom of the original image whose colors are ignored;
            many images of COCO have a border there.

    Raises:
        ValueError: a value is outside its range.

    Source:
        BoxInst (CVPR 2021), equations 2 to 8; section 4 for the warm-up.
    """

    steps: Tensor

    def __init__(
        self,
        threshold: float = 0.3,
        size: int = 3,
        dilation: int = 2,
        warmup_steps: int = 10_000,
        bottom_pixels_removed: int = 10,
    ) -> None:
        super().__init__()
        if not 0 < threshold <= 1:
            raise ValueError(f"pairwise threshold is {threshold}; above 0 up to 1 is allowed")
        if size < 3 or size % 2 == 0:
            raise ValueError(f"pairwise size is {size}; 3, 5, 7, ... are allowed")
        for name, value, minimum in (
            ("pairwise dilation", dilation, 1),
            ("pairwise warmup_steps", warmup_steps, 0),
            ("bottom_pixels_removed", bottom_pixels_removed, 0),
        ):
            if value < minimum:
                raise ValueError(f"{name} is {value}; {minimum} or more is allowed")
        self.threshold, self.size, self.dilation = threshold, size, dilation
        self.warmup_steps, self.bottom_pixels_removed = warmup_steps, bottom_pixels_removed
        self.register_buffer("steps", torch.tensor(0))

    def forward(
        self,
        logits: Float[Tensor, "p h4 w4"],
        boxes: Float[Tensor, "p 4"],
        image_index: Int64[Tensor, " p"],
        batch: Batch,
        stride: int,
    ) -> tuple[Float[Tensor, " p"], Float[Tensor, ""]]:
        """The projection loss of each mask, and the pairwise loss of all masks together.

        Args:
            logits: of P masks.
            boxes: of their objects, in pixels of the input.
            image_index: image of each mask.
            batch: the images and their sizes.
            stride: pixels of the input per cell of the masks.
        """
        if self.training:
            self.steps += 1
        size = (batch.images.shape[-2], batch.images.shape[-1])
        inside = boxinst.box_masks(boxes, size, stride)
        projection = boxinst.projection_loss(logits.sigmoid(), inside)

        similar = self.color_similarity(batch, stride) >= self.threshold
        pairs = similar[image_index] & inside[:, None]
        pairwise = boxinst.pairwise_loss(logits, pairs, self.size, self.dilation)
        pairwise = pairwise / mean_over_ranks(pairs.sum().float()).clamp(min=1)
        if self.warmup_steps:
            pairwise = pairwise * (self.steps / self.warmup_steps).clamp(max=1)
        return projection, pairwise

    @torch.no_grad()
    def color_similarity(self, batch: Batch, stride: int) -> Float[Tensor, "b k h4 w4"]:
        """Color similarity of neighbors in each image; 0 for those outside of it."""
        images = batch.images
        valid = torch.zeros_like(images[:, 0], dtype=torch.bool)  # (B, H, W)
        for of_image, info in zip(valid, batch.infos, strict=True):
            height, width = info.size
            removed = int(self.bottom_pixels_removed * height / info.original_size[0])
            of_image[: height - removed, :width] = True
        lab = boxinst.lab_at_stride(images, stride)
        valid = sample_at_stride(valid, stride)
        return boxinst.color_similarity(lab, valid, self.size, self.dilation)
