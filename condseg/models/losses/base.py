"""What the criterion needs of a head's loss."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from condseg.structures import Assignment, HeadPredictions, Locations, Targets


class DenseLoss(nn.Module):
    """Assigns objects to locations and computes the losses of classes and boxes."""

    mask_weight: float = 1.0
    """Factor of the mask losses beside it."""
    predictions: ClassVar[type[HeadPredictions]] = HeadPredictions
    """The predictions that it trains."""

    @abstractmethod
    def forward(
        self, head: HeadPredictions, locations: Locations, targets: Sequence[Targets]
    ) -> tuple[Assignment, dict[str, Tensor]]:
        """The assignment of the images' objects, and the losses by name."""
