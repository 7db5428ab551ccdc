"""What CondInst needs of a backbone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from condseg.structures import Size

GREY = 114


class FeatureExtractor(nn.Module):
    """Normalizes images and computes their maps of strides 8, 16 and 32.

    Attributes:
        network: computes the maps; its batch norms are folded for inference.
        out_channels: of the three maps.
        channels_last: memory format of the maps on the CPU in evaluation.
        letterbox: whether images are padded with grey, in evaluation to a square.
    """

    network: nn.Module
    out_channels: tuple[int, int, int]
    channels_last: bool = False
    letterbox: bool = False

    @abstractmethod
    def normalize(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """RGB 0..255 -> the input of :meth:`forward`, but for the padding."""

    @abstractmethod
    def forward(self, x: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _c _h _w"]]:
        """(B, 3, H, W) -> [(B, C3, H/8, W/8), (B, C4, H/16, W/16), (B, C5, H/32, W/32)]."""

    def prepare(
        self, images: UInt8[Tensor, "b 3 h w"], sizes: Sequence[Size]
    ) -> Float[Tensor, "b 3 h2 w2"]:
        """Normalize a batch and its padding, which is zero after the normalization, as in the
        official CondInst, or grey, as in RTMDet.

        Args:
            images: (B, 3, H, W) RGB 0..255, padded at the right and the bottom.
            sizes: (height, width) of each image without its padding.
        """
        height, width = images.shape[-2:]
        if not self.letterbox:
            return _fill_padding(self.normalize(images), sizes, 0)
        side = height if self.training else max(height, width)
        images = F.pad(images, (0, max(side - width, 0), 0, side - height))
        return self.normalize(_fill_padding(images, sizes, GREY))


def _fill_padding(x: Tensor, sizes: Sequence[Size], value: int) -> Tensor:
    if all(size == x.shape[-2:] for size in sizes):
        return x
    filled = x.clone()
    for image, (height, width) in zip(filled, sizes, strict=True):  # no copy to the device
        image[:, height:] = value
        image[:, :, width:] = value
    return filled
