"""Masks by tiles equal masks by interpolation of whole maps, except for rounding."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from studies.published.detector import paste_whole
from torch import Tensor

from condseg.ops.paste import paste
from condseg.structures import Size

sides = st.integers(1, 150)


def check(logits: Tensor, stride: int, size: Size, original: Size, threshold: float) -> None:
    ours = paste(logits, stride, size, original, threshold)
    assert ours.shape == (len(logits), *original)
    for shift in (-1e-6, 1e-6):
        # A pixel may differ where a threshold shifted by the rounding error changes it as well.
        theirs = paste_whole(logits, stride, size, original, threshold + shift)
        wrong = ours > theirs if shift < 0 else theirs > ours
        assert not wrong.any()


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    cells=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    stride=st.sampled_from([2, 4]),
    original=st.tuples(sides, sides),
    cut=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    instances=st.integers(0, 10),
    coarse=st.integers(1, 8),
    threshold=st.sampled_from([0.5, 0.3]),
)
def test_any_size(
    cells: Size,
    stride: int,
    original: Size,
    cut: Size,
    instances: int,
    coarse: int,
    threshold: float,
) -> None:
    generator = torch.Generator().manual_seed(0)
    blobs = torch.randn(instances, 1, coarse, coarse, generator=generator) * 4
    logits = (
        F.interpolate(blobs, cells, mode="bicubic") if instances else blobs.new_zeros(0, 1, *cells)
    )
    size = (max(1, stride * cells[0] - cut[0]), max(1, stride * cells[1] - cut[1]))
    args = (logits[:, 0], stride, size, original, threshold)
    check(*args)


@pytest.mark.parametrize("value", [0.0, 1e-4, -1e-4, 30.0, -30.0, torch.inf, -torch.inf])
def test_everywhere_at_the_threshold_or_far_from_it(value: float) -> None:
    args = (torch.full((2, 9, 11), value), 4, (35, 44), (100, 90), 0.5)
    assert torch.equal(paste(*args), paste_whole(*args))


def test_an_image_of_usual_size() -> None:
    blobs = torch.randn(12, 1, 12, 16, generator=torch.Generator().manual_seed(1)) * 3 - 2
    logits = F.interpolate(blobs, (100, 152), mode="bicubic")[:, 0]
    args = (logits, 4, (400, 600), (427, 640), 0.5)
    assert 0.05 < paste(*args).float().mean() < 0.6
    check(*args)


@pytest.mark.parametrize("threshold", [0.5, 0.3, 0.0, 1.0])
def test_logits_are_interpolated_as_by_torch(threshold: float) -> None:
    blobs = torch.randn(5, 1, 6, 8, generator=torch.Generator().manual_seed(2)) * 3
    logits = F.interpolate(blobs, (20, 28), mode="bicubic")[:, 0]
    large = F.interpolate(logits[None], scale_factor=8, mode="bilinear")[..., :150, :222]
    large = F.interpolate(large, (300, 444), mode="bilinear")[0]
    ours = paste(logits, 8, (150, 222), (300, 444), threshold, "logits")
    unclear = (large.sigmoid() - threshold).abs() < 1e-5
    assert torch.equal(ours | unclear, (large.sigmoid() > threshold) | unclear)
    if threshold in (0.3, 0.5):
        assert 0.2 < ours.float().mean() < 0.8
        assert unclear.float().mean() < 1e-3
        of_scores = paste(logits, 8, (150, 222), (300, 444), threshold)
        assert (ours != of_scores).float().mean() > 0.01
