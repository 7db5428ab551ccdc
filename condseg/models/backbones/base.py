"""What CondInst needs of a backbone."""

from __future__ import annotations

from abc import abstractmethod

from jaxtyping import Float, UInt8
from torch import Tensor, nn


class FeatureExtractor(nn.Module):
    """Normalizes images and computes their maps of strides 8, 16 and 32.

    Attributes:
        network: computes the maps; its batch norms are folded for inference.
        out_channels: of the three maps.
        channels_last: memory format of the maps on the CPU in evaluation.
    """

    network: nn.Module
    out_channels: tuple[int, int, int]
    channels_last: bool = False

    @abstractmethod
    def normalize(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """RGB 0..255 -> the input of :meth:`forward`."""

    @abstractmethod
    def forward(self, x: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _c _h _w"]]:
        """(B, 3, H, W) -> [(B, C3, H/8, W/8), (B, C4, H/16, W/16), (B, C5, H/32, W/32)]."""
