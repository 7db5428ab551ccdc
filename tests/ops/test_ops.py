"""Maths without parameters against the slow, obvious version."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import generalized_box_iou_loss

from condseg.ops.boxes import boxes_from_ltrb, centerness, ltrb_overlap
from condseg.ops.distributed import mean_over_ranks
from condseg.ops.locations import pyramid_locations
from condseg.ops.losses import box_loss, dice_loss, focal_loss, giou_loss, quality_focal_loss
from condseg.ops.masks import aligned_upsample, mask_centers, sample_at_stride


def slow_upsample(x: torch.Tensor, factor: int) -> torch.Tensor:
    """Each output pixel: linear between the two input pixels around it, repeated outside."""
    h, w = x.shape
    out = torch.zeros(h * factor, w * factor)
    for i in range(h * factor):
        for j in range(w * factor):
            y = max(i - factor // 2, 0) / factor
            z = max(j - factor // 2, 0) / factor
            y0, z0 = int(y), int(z)
            y1, z1 = min(y0 + 1, h - 1), min(z0 + 1, w - 1)
            fy, fz = y - y0, z - z0
            top = (1 - fz) * x[y0, z0] + fz * x[y0, z1]
            bottom = (1 - fz) * x[y1, z0] + fz * x[y1, z1]
            out[i, j] = (1 - fy) * top + fy * bottom
    return out


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 2, 3, 4, 8]))
def test_aligned_upsample_is_linear_between_pixels(h: int, w: int, factor: int) -> None:
    x = torch.randn(h, w)
    torch.testing.assert_close(aligned_upsample(x, factor), slow_upsample(x, factor))


def test_aligned_upsample_of_nothing() -> None:
    assert aligned_upsample(torch.zeros(0, 3, 4), 2).shape == (0, 6, 8)


def test_mask_centers() -> None:
    masks = torch.rand(5, 7, 9) > 0.5
    masks[3] = False
    masks[4] = False
    masks[4, 2, 6] = True
    centers = mask_centers(masks)
    for mask, center in zip(masks, centers, strict=True):
        y, x = mask.nonzero(as_tuple=True)
        expected = [x.float().mean(), y.float().mean()] if mask.any() else [0.0, 0.0]
        torch.testing.assert_close(center, torch.tensor(expected))


def test_locations_are_centres_of_cells() -> None:
    locations = pyramid_locations([(2, 3), (1, 1)], [8, 16])
    points = [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12], [8, 8]]
    assert locations.points.tolist() == points
    assert locations.level.tolist() == [0] * 6 + [1]
    assert locations.stride.tolist() == [8] * 6 + [16]
    assert locations.size_of_interest.tolist() == [64] * 6 + [128]
    assert locations.regression_range.tolist() == [[-1, 64]] * 6 + [[64, 1e8]]
    corners = pyramid_locations([(2, 3), (1, 1)], [8, 16], offset=0.0)
    assert corners.points.tolist() == [[0, 0], [8, 0], [16, 0], [0, 8], [8, 8], [16, 8], [0, 0]]


def test_sample_at_stride() -> None:
    mask = torch.arange(64).reshape(1, 8, 8)
    assert sample_at_stride(mask, 4).tolist() == [[[18, 22], [50, 54]]]


def test_overlap_of_boxes() -> None:
    points = torch.rand(20, 2) * 10
    a, b = torch.rand(20, 4) * 5 + 0.1, torch.rand(20, 4) * 5 + 0.1
    iou, giou = ltrb_overlap(a, b)
    for i in range(20):
        (ax, ay, aX, aY), (bx, by, bX, bY) = (
            boxes_from_ltrb(points[i : i + 1], d[i : i + 1])[0].tolist() for d in (a, b)
        )
        inner = (min(aX, bX) - max(ax, bx)) * (min(aY, bY) - max(ay, by))
        union = (aX - ax) * (aY - ay) + (bX - bx) * (bY - by) - inner
        hull = (max(aX, bX) - min(ax, bx)) * (max(aY, bY) - min(ay, by))
        assert iou[i].item() == pytest.approx((inner + 1) / (union + 1), rel=1e-4)
        expected = (inner + 1) / (union + 1) - (hull - union) / hull
        assert giou[i].item() == pytest.approx(expected, rel=1e-3, abs=1e-5)
    torch.testing.assert_close(box_loss(a, b, "giou"), 1 - giou)
    torch.testing.assert_close(box_loss(a, b, "linear_iou"), 1 - iou)
    torch.testing.assert_close(box_loss(a, b, "iou"), -iou.log())


def test_centerness() -> None:
    assert centerness(torch.tensor([[2.0, 2, 2, 2]])).item() == 1
    assert centerness(torch.tensor([[1.0, 3, 4, 3]])).item() == pytest.approx(0.5)


def test_focal_loss_against_its_formula() -> None:
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 3, 3, 0])
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        for k, logit in enumerate(row):
            p = 1 / (1 + math.exp(-logit))
            p_t, alpha_t = (p, 0.25) if k == label else (1 - p, 0.75)
            total -= alpha_t * (1 - p_t) ** 2 * math.log(p_t)
    assert focal_loss(logits, labels).item() == pytest.approx(total, rel=1e-5)


def test_quality_focal_loss_against_its_formula() -> None:
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 3, 3, 0])
    quality = torch.tensor([0.0, 0.4, 1.0, 0.7, 0.0, 0.9])
    total = 0.0
    for row, label, u in zip(logits.tolist(), labels.tolist(), quality.tolist(), strict=True):
        for k, logit in enumerate(row):
            p, y = 1 / (1 + math.exp(-logit)), u if k == label else 0.0
            total -= abs(y - p) ** 2 * (y * math.log(p) + (1 - y) * math.log(1 - p))
    assert quality_focal_loss(logits, labels, quality).item() == pytest.approx(total, rel=1e-5)
    right = torch.tensor([[20.0, -20.0]])
    assert quality_focal_loss(right, labels[:1], torch.ones(1)).item() == pytest.approx(0, abs=1e-8)


def test_gradient_of_quality_focal_loss() -> None:
    logits = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    labels, quality = torch.tensor([0, 1, 2, 3, 0]), torch.rand(5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: quality_focal_loss(x, labels, quality), logits)


def test_dice_loss() -> None:
    target = torch.rand(2, 4, 4) > 0.5
    assert dice_loss(target.float(), target).max() < 1e-5
    assert dice_loss(torch.zeros(2, 4, 4), target).tolist() == [1, 1]
    assert dice_loss(torch.zeros(0, 4, 4), target[:0]).shape == (0,)


def test_mean_over_one_rank() -> None:
    value = torch.tensor(3.0, requires_grad=True)
    assert mean_over_ranks(value) == 3
    assert not mean_over_ranks(value).requires_grad


def test_giou_loss_is_that_of_torchvision() -> None:
    """Of boxes that overlap, lie apart, touch, and have no area."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.randint(0, 9, (2, 200, 2, 2), generator=generator).float()
    boxes = torch.cat((corners.amin(2), corners.amax(2)), dim=2)  # (2, N, 4)
    torch.testing.assert_close(giou_loss(*boxes), generalized_box_iou_loss(*boxes))
