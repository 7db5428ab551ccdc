"""RTMDet-Ins's dense head: classes, boxes and kernels from three towers, and no centerness."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from condseg.layers import Implementation
from condseg.layers.parts import full_precision
from condseg.models.heads.fcos import HeadOutputs, run_levels


class _Tower(nn.Module):
    """3x3 convolutions that the levels share, each level with batch norms of its own, and SiLU."""

    def __init__(self, channels: int, num_convs: int, num_levels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(num_convs)
        )
        self.norms = nn.ModuleList(
            nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(num_convs))
            for _ in range(num_levels)
        )

    def forward(
        self, maps: Sequence[Float[Tensor, "b c _h _w"]]
    ) -> list[Float[Tensor, "b c _h _w"]]:
        for conv, *norms in zip(self.convs, *self.norms, strict=True):
            made = run_levels([conv], maps)
            maps = [F.silu(norm(x)) for norm, x in zip(norms, made, strict=True)]
        return list(maps)


class RTMDetHead(nn.Module):
    """Head of RTMDet-Ins: the class score says how good the box is, so there is no centerness.

    tower_t(x_l) = (SiLU BN_{t,l} conv_t)^n x_l for t in class, box, kernel; then one 1x1
    convolution a level and output; distances are relu(.) strides.

    Args:
        channels: channels of the pyramid.
        num_classes: K.
        num_convs: 3x3 convolutions of each tower.
        num_params: G, parameters that the kernel branch generates for one instance.
        num_levels: levels of the pyramid.

    Attributes:
        implementation: "reference" runs the kernels' last convolutions over the whole maps, as
            published; "fast" only where :meth:`params_at` is asked.

    Source:
        RTMDet (arXiv 2212.07784), section 3: convolutions shared by the levels, batch norms not;
        a kernel branch of 169 outputs. Sizes and initial values of mmdetection's ``rtmdet-ins``
        configs. There the box tower is the class tower, and the kernel tower is not shared by the
        levels; here each of the three is a tower of its own and shared, as the paper says.
    """

    implementation: Implementation = "fast"

    def __init__(
        self, channels: int, num_classes: int, num_convs: int, num_params: int, num_levels: int = 3
    ) -> None:
        super().__init__()

        def outputs(count: int) -> nn.ModuleList:
            return nn.ModuleList(nn.Conv2d(channels, count, 1) for _ in range(num_levels))

        self.class_tower = _Tower(channels, num_convs, num_levels)
        self.box_tower = _Tower(channels, num_convs, num_levels)
        self.kernel_tower = _Tower(channels, num_convs, num_levels)
        self.class_logits, self.box_ltrb = outputs(num_classes), outputs(4)
        self.controller = outputs(num_params)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
        starts = ((self.class_logits, -math.log(99)), (self.box_ltrb, 1.0), (self.controller, 0.0))
        for convs, bias in starts:
            for conv in convs:
                assert isinstance(conv, nn.Conv2d) and conv.bias is not None  # noqa: PT018
                nn.init.constant_(conv.bias, bias)

    def forward(self, maps: Sequence[Float[Tensor, "b c _h _w"]]) -> HeadOutputs:
        logits = _predict(self.class_logits, self.class_tower(maps))
        ltrb = _predict(self.box_ltrb, self.box_tower(maps))
        kernels = self.kernel_tower(maps)
        if self.implementation == "reference":
            kernels = _predict(self.controller, kernels)
        return HeadOutputs(_flat(logits), F.relu(_flat(ltrb)), None, kernels)

    def params_at(
        self,
        controller_features: Sequence[Float[Tensor, "b c _h _w"]],
        image_index: Int64[Tensor, " p"],
        location_index: Int64[Tensor, " p"],
    ) -> Float[Tensor, "p g"]:
        """The kernel branch's output at chosen locations only.

        Args:
            controller_features: of :class:`HeadOutputs`.
            image_index: (P,) picture of each choice.
            location_index: (P,) its location 0..L-1.
        """
        if self.implementation == "reference":
            dense = torch.cat([x.flatten(2) for x in controller_features], dim=2)
            return dense[image_index, :, location_index]
        params, order, first = [], [], 0
        for x, conv in zip(controller_features, self.controller, strict=True):
            assert isinstance(conv, nn.Conv2d)
            count = x.shape[-2] * x.shape[-1]
            here = (location_index >= first) & (location_index < first + count)
            chosen = here.nonzero().squeeze(1)
            cells = x.flatten(2)[image_index[chosen], :, location_index[chosen] - first]
            with full_precision(cells):
                cells = cells.to(conv.weight.dtype)
                params.append(F.linear(cells, conv.weight.flatten(1), conv.bias))
            order.append(chosen)
            first += count
        return torch.cat(params)[torch.cat(order).argsort()]


def _predict(convs: nn.ModuleList, maps: Sequence[Tensor]) -> list[Float[Tensor, "b k _h _w"]]:
    """One convolution a level, not rounded to half precision."""
    with full_precision(maps[0]):
        dtype = next(convs.parameters()).dtype
        return [conv(x.to(dtype)) for conv, x in zip(convs, maps, strict=True)]


def _flat(maps: Sequence[Tensor]) -> Float[Tensor, "b l k"]:
    """The levels one after the other, locations before channels."""
    return torch.cat([x.flatten(2) for x in maps], dim=2).transpose(1, 2)
