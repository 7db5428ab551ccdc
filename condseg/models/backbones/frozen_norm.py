"""A batch norm that nothing trains."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from condseg.layers.implementation import Implementation


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """A batch norm that keeps no map for the gradients of parameters that want none.

    torchvision's layer of that name has no parameters, so it does not stand where a checkpoint's
    ``nn.BatchNorm2d`` stood; this one is ``nn.BatchNorm2d`` but for its forward pass in evaluation.

    Attributes:
        implementation: "reference" is ``nn.BatchNorm2d`` altogether.
    """

    implementation: Implementation = "fast"

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        mean, variance = self.running_mean, self.running_var
        plain = self.training or self.implementation == "reference" or not self.affine
        if plain or mean is None or variance is None or input.dtype != self.weight.dtype:
            return super().forward(input)
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        return torch.addcmul(shift[:, None, None], input, scale[:, None, None])
