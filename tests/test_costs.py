"""The fast forms keep under their bars: bytes and operations counted, never timed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from condseg.benchmarks.measure import peak_bytes
from condseg.layers.local_filter import filter_locally

CPU = torch.device("cpu")


def memory_ratio(run: Callable[[str], object]) -> float:
    """Peak bytes of the fast form over those of the reference."""
    return peak_bytes(lambda: run("fast"), CPU) / peak_bytes(lambda: run("reference"), CPU)


def test_local_filter_memory() -> None:
    x = torch.randn(4, 64, 64, 64, requires_grad=True)
    filters = torch.randn(4, 64, 9, 64, 64, requires_grad=True)

    def forward(implementation: str) -> Tensor:
        return filter_locally(x, filters, (3, 3), 1, implementation)

    with torch.no_grad():
        assert memory_ratio(forward) < 0.15
    cotangent = torch.randn(x.shape)
    assert memory_ratio(lambda i: torch.autograd.grad(forward(i), (x, filters), cotangent)) < 0.6
