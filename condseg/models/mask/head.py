"""The mask head whose weights the controller predicts for each instance."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from condseg.layers.parts import full_precision
from condseg.ops.device import is_asynchronous
from condseg.ops.instance_maps import instance_maps, whole_instance_maps
from condseg.ops.locations import level_locations
from condseg.structures import MaskQueries


class DynamicMaskHead(nn.Module):
    """Applies, for each instance, a few 1x1 convolutions whose weights the controller predicted.

    mask_p = f(concat((q_p - x) / s_p, features); params_p), ReLU between layers, none at the end,
    with q_p the instance's location, x the pixel and s_p its level's size of interest.

    It has no parameters. The computation is in float32 or more, see
    :func:`condseg.ops.instance_maps.instance_maps`.

    Args:
        in_channels: channels of the mask features.
        channels: channels of the hidden layers.
        num_layers: layers, at least 1.
        relative_coords: whether the relative coordinates are an input.
        feature_stride: pixels of the image per cell of the features.
        out_stride: pixels of the image per cell of the masks.

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
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers is {num_layers}; 1 or more is allowed")
        if feature_stride % out_stride:
            raise ValueError(f"out_stride={out_stride} must divide feature_stride={feature_stride}")
        self.in_channels, self.relative_coords = in_channels, relative_coords
        self.feature_stride, self.out_stride = feature_stride, out_stride
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
        """Weights and biases of each layer."""
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
        factor = self.feature_stride // self.out_stride
        if not torch.compiler.is_exporting() and len(queries.params) == 0:
            h, w = features.shape[-2:]
            zero = (features.sum() + queries.params.sum()) * 0  # keeps the autograd graph connected
            return features.new_zeros(0, factor * h, factor * w) + zero
        return self._compute(features, queries, factor)

    def _compute(self, features: Tensor, queries: MaskQueries, factor: int) -> Tensor:
        # Half precision cannot represent the coordinates.
        with full_precision(features):
            dtype = torch.promote_types(features.dtype, torch.float32)
            size = (features.shape[-2], features.shape[-1])
            weights, biases = self.parse(queries.params.to(dtype))
            first, shared = self._affine(features.to(dtype), queries, weights[0], biases[0])
            later = [t for layer in zip(weights[1:], biases[1:], strict=True) for t in layer]
            image = queries.image_index
            if torch.compiler.is_compiling() or is_asynchronous(features):
                return whole_instance_maps(shared, image, first, later, size, factor)
            counts = image.bincount(minlength=len(features)).tolist()
            if bool((image[1:] >= image[:-1]).all()):
                return instance_maps(shared, counts, first, later, size, factor)
            order = image.argsort(stable=True)
            sorted_later = [t[order] for t in later]
            maps = instance_maps(shared, counts, first[order], sorted_later, size, factor)
            return maps[order.argsort()]

    def _affine(
        self, features: Tensor, queries: MaskQueries, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The first layer as (P, out, K) weights on an (B, K, h w) input shared by the instances.

        w (q - x) / s + b = -(w / s) x + (b + w q / s): the coordinates x of the pixels are
        shared, the rest is a bias, and the bias is the weight of an input of ones. K is the
        channels of the coordinates, the features and the ones.
        """
        batch, _, height, width = features.shape
        shared = features.flatten(2)  # (B, C, h w)
        if self.relative_coords:
            pixels = level_locations((height, width), self.feature_stride, features.device)
            pixels = pixels.to(shared)
            per_pixel = weight[..., :2] / queries.size_of_interest[:, None, None]  # (P, out, 2)
            points = queries.points[..., None].to(per_pixel)  # (P, 2, 1)
            bias = bias + (per_pixel @ points).squeeze(-1)
            weight = torch.cat((-per_pixel, weight[..., 2:]), dim=2)  # (P, out, 2 + C)
            shared = torch.cat((pixels.T.expand(batch, -1, -1), shared), dim=1)  # (B, 2 + C, h w)
        ones = shared.new_ones(batch, 1, shared.shape[2])
        return torch.cat((weight, bias[..., None]), dim=2), torch.cat((shared, ones), dim=1)
