"""The head whose weights are predicted: a tiny network of its own for each instance."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from condseg.layers import Implementation
from condseg.ops.locations import level_locations
from condseg.ops.masks import aligned_upsample
from condseg.structures import MaskQueries


class DynamicMaskHead(nn.Module):
    """Runs, for each instance, a few 1x1 convolutions whose weights the controller predicted.

    mask_p = f(concat((q_p - x) / s_p, features); params_p), ReLU between layers, none at the end,
    with q_p the instance's location, x the pixel and s_p its level's size of interest.

    It has no weights of its own. ``implementation="reference"`` is the published form: features
    copied for each instance and one grouped convolution a layer. ``"fast"`` computes the same:
    the first layer is one matrix product shared by the instances of a picture, to which the
    relative coordinates add an affine term; the other layers are batched products.

    Args:
        in_channels: channels of the mask features.
        channels: channels of the hidden layers.
        num_layers: layers, at least 1.
        relative_coords: give the instances their relative coordinates.
        feature_stride: pixels of the picture a cell of the features.
        out_stride: pixels of the picture a cell of the masks.
        implementation: see above.

    Shape:
        features (B, in_channels, h, w), P queries -> logits (P, h f, w f),
        f = feature_stride / out_stride.

    Raises:
        ValueError: ``num_layers`` < 1, or ``out_stride`` does not divide ``feature_stride``.

    Source:
        CondInst (ECCV 2020), section 3.1: 169 parameters at 8 channels and 3 layers.
    """

    def __init__(
        self,
        in_channels: int = 8,
        channels: int = 8,
        num_layers: int = 3,
        relative_coords: bool = True,
        feature_stride: int = 8,
        out_stride: int = 4,
        implementation: Implementation = "fast",
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers={num_layers}: the mask head wants at least 1 layer")
        if feature_stride % out_stride:
            raise ValueError(f"out_stride={out_stride} must divide feature_stride={feature_stride}")
        self.in_channels = in_channels
        self.relative_coords = relative_coords
        self.feature_stride = feature_stride
        self.out_stride = out_stride
        self.implementation: Implementation = implementation
        first = in_channels + 2 * relative_coords
        inputs = [first] + [channels] * (num_layers - 1)
        outputs = [channels] * (num_layers - 1) + [1]
        self.layers = tuple(zip(outputs, inputs, strict=True))
        self.weight_counts = [o * i for o, i in self.layers]
        self.bias_counts = outputs

    @property
    def num_params(self) -> int:
        """G, the parameters of one instance."""
        return sum(self.weight_counts) + sum(self.bias_counts)

    def parse(
        self, params: Float[Tensor, "p g"]
    ) -> tuple[list[Float[Tensor, "p _o _i"]], list[Float[Tensor, "p _o"]]]:
        """Weights (P, out, in) and biases (P, out) of each layer; see :meth:`grouped`."""
        parts = params.split(self.weight_counts + self.bias_counts, dim=1)
        weights = [part.unflatten(1, shape) for part, shape in zip(parts, self.layers)]  # noqa: B905
        return weights, list(parts[len(self.layers) :])

    def grouped(
        self, params: Float[Tensor, "p g"]
    ) -> tuple[list[Float[Tensor, "_po _i 1 1"]], list[Float[Tensor, " _po"]]]:
        """The same as weights (P out, in, 1, 1) and biases (P out,) of convolutions in P groups."""
        weights, biases = self.parse(params)
        return [w.flatten(0, 1)[..., None, None] for w in weights], [b.flatten() for b in biases]

    def forward(
        self, features: Float[Tensor, "b c h w"], queries: MaskQueries
    ) -> Float[Tensor, "p h2 w2"]:
        if len(queries.params) == 0:
            h, w = features.shape[-2:]
            masks = features.new_zeros(0, h, w)
            masks = masks + (features.sum() + queries.params.sum()) * 0
        elif self.implementation == "reference":
            masks = self._reference(features, queries)
        else:
            masks = self._fast(features, queries)
        return aligned_upsample(masks, self.feature_stride // self.out_stride)

    def _reference(self, features: Tensor, queries: MaskQueries) -> Tensor:
        num, (h, w) = len(queries.params), features.shape[-2:]
        x = features[queries.image_index]
        if self.relative_coords:
            pixels = level_locations((h, w), self.feature_stride, features.device)
            relative = queries.points[:, None] - pixels
            relative = relative / queries.size_of_interest[:, None, None]
            relative = relative.transpose(1, 2).reshape(num, 2, h, w)
            x = torch.cat((relative.to(x.dtype), x), dim=1)
        x = x.reshape(1, -1, h, w)
        weights, biases = self.grouped(queries.params)
        for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            x = F.conv2d(x, weight, bias, groups=num)
            if i + 1 < len(weights):
                x = F.relu(x)
        return x.view(num, h, w)

    def _fast(self, features: Tensor, queries: MaskQueries) -> Tensor:
        h, w = features.shape[-2:]
        shared = features.flatten(2)
        weights, biases = self.parse(queries.params)
        first, offset = weights[0], biases[0]
        if self.relative_coords:
            pixels = level_locations((h, w), self.feature_stride, features.device).to(shared.dtype)
            per_pixel = first[..., :2] / queries.size_of_interest[:, None, None]
            points = queries.points[..., None].to(per_pixel.dtype)
            offset = offset + (per_pixel @ points).squeeze(-1)
            first = torch.cat((-per_pixel, first[..., 2:]), dim=2)
            positions = pixels.T.expand(len(shared), -1, -1)
            shared = torch.cat((positions, shared), dim=1)
        out = first.shape[1]
        order = queries.image_index.argsort(stable=True)
        counts = queries.image_index.bincount(minlength=len(shared)).tolist()
        rows, shifts = first[order].split(counts), offset[order].split(counts)
        x = torch.cat(
            [
                torch.addmm(shift.reshape(-1, 1), row.flatten(0, 1), picture).view(-1, out, h * w)
                for row, shift, picture in zip(rows, shifts, shared, strict=True)
            ]
        )
        for weight, bias in zip(weights[1:], biases[1:], strict=True):
            x = torch.baddbmm(bias[order][..., None], weight[order], F.relu(x))
        return x[order.argsort()].view(-1, h, w)
