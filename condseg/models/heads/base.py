"""What CondInst needs of a dense head."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

from jaxtyping import Float, Int64
from torch import Tensor, nn

from condseg.models.losses.base import DenseLoss
from condseg.structures import HeadPredictions


class DenseHead(nn.Module):
    """Predicts classes, boxes and the parameters of the mask head at every location.

    The type of its predictions says how scores are computed.

    Attributes:
        location_offset: of a location from the corner of its cell, in strides; rounded down to
            pixels.
    """

    location_offset: float = 0.5

    @abstractmethod
    def forward(self, maps: Sequence[Float[Tensor, "b c _h _w"]]) -> HeadPredictions:
        """Predictions at all locations of the pyramid's maps."""

    @abstractmethod
    def params_at(
        self,
        controller_features: Sequence[Float[Tensor, "b c _h _w"]],
        image_index: Int64[Tensor, " p"],
        location_index: Int64[Tensor, " p"],
    ) -> Float[Tensor, "p g"]:
        """The controller's output at P chosen locations only, each of an image, 0..L-1."""

    @abstractmethod
    def default_loss(self) -> DenseLoss:
        """The loss of this head, with its published options."""


HeadFactory = Callable[[int, int, int, int], DenseHead]
"""(channels, num_classes, num_params, num_levels) -> head; a class path in YAML."""
