"""What CondInst needs of a feature pyramid."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor, nn


class Pyramid(nn.Module):
    """Turns C3, C4, C5 into maps of equal width."""

    strides: tuple[int, ...] = (8, 16, 32, 64, 128)
    """Of the output maps; the first three are 8, 16, 32."""

    @abstractmethod
    def forward(
        self, features: Sequence[Float[Tensor, "b _c _h _w"]]
    ) -> list[Float[Tensor, "b c _h _w"]]:
        """Three maps at strides 8, 16, 32 -> one map per stride."""


PyramidFactory = Callable[[Sequence[int], int], Pyramid]
"""(in_channels of C3, C4, C5; channels) -> pyramid; a class path in YAML."""
