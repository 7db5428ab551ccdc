"""Depthwise gradients as convolutions, against those of PyTorch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from condseg.layers.depthwise import conv_depthwise

GEOMETRIES = st.tuples(
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(0, 5), st.integers(0, 5)),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
)


def gradients(y: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(y, inputs, torch.linspace(-1, 1, y.numel()).view_as(y).to(y))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@settings(deadline=None, max_examples=60)
@given(geometry=GEOMETRIES, batch=st.integers(1, 3), size=st.tuples(*[st.integers(9, 14)] * 2))
def test_output_and_gradients_are_those_of_conv2d(
    dtype: torch.dtype,
    geometry: tuple[tuple[int, int], ...],
    batch: int,
    size: tuple[int, int],
) -> None:
    kernel, *rest = geometry
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 4, *size, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(4, 1, *kernel, generator=generator).to(dtype).requires_grad_()
    exact = [t.detach().double().requires_grad_() for t in (x, weight)]
    y, expected = conv_depthwise(x, weight, *rest), F.conv2d(*exact, None, *rest, groups=4)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    for got, want in zip(
        (y, *gradients(y, x, weight)), (expected, *gradients(expected, *exact)), strict=True
    ):
        assert got.dtype == dtype
        assert (got.double() - want).norm() <= tolerance * want.norm() + 1e-12


def test_second_derivatives() -> None:
    x = torch.randn(1, 2, 6, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(
        lambda x, w: conv_depthwise(x, w, (2, 1), (1, 0), (1, 2)), (x, weight)
    )


def test_autocast_computes_in_its_precision() -> None:
    x = torch.randn(1, 2, 8, 8, requires_grad=True)
    weight = torch.randn(2, 1, 3, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = conv_depthwise(x, weight, (2, 2), (1, 1))
        assert torch.equal(y, F.conv2d(x, weight, None, 2, 1, groups=2))
    assert y.dtype == torch.bfloat16
    assert all(g.dtype == torch.float32 for g in gradients(y, x, weight))
