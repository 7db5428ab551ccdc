"""The tiled mask head against one grouped convolution per layer."""

import pytest
import torch
from studies.published import published_form
from torch.autograd import grad

from condseg.models import DynamicMaskHead
from condseg.structures import MaskQueries


@pytest.mark.parametrize(
    ("layers", "channels", "out_stride", "size", "counts"),
    [
        (3, 8, 4, (10, 13), (35, 3)),
        (3, 8, 8, (5, 7), (0, 2)),
        (1, 8, 4, (3, 40), (2, 1)),
        (4, 11, 2, (6, 11), (3, 4)),
        (2, 40, 1, (1, 1), (1, 1)),
    ],
)
def test_output_and_gradients(
    layers: int, channels: int, out_stride: int, size: tuple[int, int], counts: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    head = DynamicMaskHead(6, channels, layers, out_stride=out_stride)
    count = sum(counts)
    params = torch.randn(count, head.num_params, requires_grad=True)
    image_index = torch.arange(2).repeat_interleave(torch.tensor(counts))
    queries = MaskQueries(
        params, torch.rand(count, 2) * 100, torch.full((count,), 64.0), image_index
    )
    inputs = (torch.randn(2, 6, *size, requires_grad=True), params)
    results = []
    for form in (head, published_form(head)):
        y = form(inputs[0], queries)
        cotangent = torch.linspace(-1, 1, y.numel()).view_as(y)
        results.append((y, *grad(y, inputs, cotangent)))
    for got, want in zip(*results, strict=True):
        assert (got - want).norm() <= 1e-5 * want.norm()
