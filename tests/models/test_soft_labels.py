"""RTMDet's assignment and losses against slow versions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.networks import SIZE
from torch import Tensor
from torchvision.ops import generalized_box_iou

from condseg.models import SoftLabelLoss
from condseg.ops.boxes import boxes_from_ltrb
from condseg.ops.locations import pyramid_locations
from condseg.structures import HeadPredictions, Targets

SIZES = ((8, 12), (4, 6), (2, 3))
LOCATIONS = pyramid_locations(SIZES, (8, 16, 32))
POINTS, STRIDE = LOCATIONS.points, LOCATIONS.stride
COUNT = len(POINTS)


def objects(*boxes: tuple[float, float, float, float]) -> Targets:
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    masks = torch.ones(len(boxes), *SIZE, dtype=torch.bool)
    return Targets(corners, torch.arange(len(boxes)) % 3, masks)


def assign(
    boxes: Tensor, target: Targets, logits: Tensor | None = None, topk: int = 13
) -> tuple[Tensor, Tensor]:
    logits = torch.zeros(COUNT, 3) if logits is None else logits
    x, y = POINTS.T[..., None]  # (L, 1) each
    x1, y1, x2, y2 = target.boxes.T
    inside = ((x > x1) & (x < x2) & (y > y1) & (y < y2)).any(dim=1).nonzero().squeeze(1)
    return SoftLabelLoss(topk).assign(POINTS, STRIDE, boxes, logits, target, inside)


def slow_iou(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return common / (sum(areas) - common)


def slow_cost(i: int, iou: float, logits: list[float], box: list[float], label: int) -> float:
    cost = 0.0
    for k, logit in enumerate(logits):
        p = 1 / (1 + math.exp(-logit))
        y = iou if k == label else 0.0
        cost += -(y * math.log(p) + (1 - y) * math.log(1 - p)) * (y - p) ** 2
    cost -= 3 * math.log(iou + 1e-7)
    center = [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]
    return cost + 10 ** (math.dist(POINTS[i].tolist(), center) / STRIDE[i].item() - 3)


def slow_assignment(
    boxes: Tensor, logits: Tensor, target: Targets, topk: int
) -> tuple[list[int], list[float]]:
    goals, labels = target.boxes.tolist(), target.labels.tolist()
    inside = [
        i
        for i, (x, y) in enumerate(POINTS.tolist())
        if any(x1 < x < x2 and y1 < y < y2 for x1, y1, x2, y2 in goals)
    ]
    costs, ious = {}, {}
    for i in inside:
        for j, (goal, label) in enumerate(zip(goals, labels, strict=True)):
            ious[i, j] = slow_iou(boxes[i].tolist(), goal)
            costs[i, j] = slow_cost(i, ious[i, j], logits[i].tolist(), goal, label)
    objects_of: dict[int, list[int]] = {i: [] for i in inside}
    for j in range(len(goals)):
        best = sorted((ious[i, j] for i in inside), reverse=True)[:topk]
        for i in sorted(inside, key=lambda i: costs[i, j])[: max(int(sum(best)), 1)]:
            objects_of[i].append(j)
    instance, quality = [-1] * COUNT, [0.0] * COUNT
    for i, chosen in objects_of.items():
        if chosen:
            among = chosen if len(chosen) == 1 else range(len(goals))
            instance[i] = min(among, key=lambda j: costs[i, j])
            quality[i] = ious[i, instance[i]]
    return instance, quality


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.integers(1, 5), st.sampled_from([1, 4, 13]))
def test_assignment_equals_the_slow_one(seed: int, count: int, topk: int) -> None:
    random = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=random) * torch.tensor([60.0, 40.0])
    size = 12 + torch.rand(count, 2, generator=random) * 40
    target = objects(*torch.cat((corner, corner + size), 1).tolist())
    # Each predicts one of the objects, moved a little, so that the IoUs are high and similar.
    which = torch.randint(count, (COUNT,), generator=random)
    boxes = target.boxes[which] + 6 * torch.rand(COUNT, 4, generator=random)
    logits = 2 * torch.randn(COUNT, 3, generator=random)
    instance, quality = assign(boxes, target, logits, topk)
    expected, ious = slow_assignment(boxes, logits, target, topk)
    assert instance.tolist() == expected
    torch.testing.assert_close(quality, torch.tensor(ious), rtol=1e-4, atol=1e-5)
    assert (instance >= 0).any()


@pytest.mark.parametrize(
    ("box", "topk", "count"),
    [
        ((4, 4, 60, 60), 13, 13),
        ((4, 4, 60, 60), 5, 5),
        ((4, 4, 32, 32), 13, 3),  # the sum of 13 IoUs of 1/4, rounded down
        ((0, 0, 0, 0), 13, 1),
    ],
)
def test_number_of_locations_is_the_sum_of_the_ious(
    box: tuple[int, ...], topk: int, count: int
) -> None:
    boxes = torch.tensor(box).float().expand(COUNT, 4)
    instance, _ = assign(boxes, objects((4, 4, 60, 60)), topk=topk)
    assert int((instance == 0).sum()) == count


def test_of_equal_predictions_the_nearest_to_the_center_is_assigned() -> None:
    target = objects((0, 0, 96, 64))
    instance, _ = assign(target.boxes.expand(COUNT, 4), target, topk=1)
    [chosen] = (instance == 0).nonzero().flatten().tolist()
    distance = (POINTS - torch.tensor([48.0, 32.0])).norm(dim=1) / STRIDE
    assert distance[chosen] == distance.min()


@pytest.mark.parametrize("boxes", [(), ((20.1, 20.1, 20.2, 20.2),), ((9, 9, 9, 9),)])
def test_objects_without_a_location(boxes: tuple[tuple[float, float, float, float], ...]) -> None:
    instance, quality = assign(torch.cat((POINTS - 4, POINTS + 4), dim=1), objects(*boxes))
    assert (instance == -1).all()
    assert (quality == 0).all()


def test_iou_of_two_boxes_without_area_is_zero() -> None:
    target = objects((4, 4, 60, 60), (12, 12, 12, 12))
    _, quality = assign(torch.cat((POINTS, POINTS), dim=1), target)
    assert quality.isfinite().all()


def test_losses_against_their_formulas() -> None:
    torch.manual_seed(0)
    ltrb = torch.rand(2, COUNT, 4) * 3
    maps = [torch.zeros(2, 1, *size) for size in SIZES]
    head = HeadPredictions(torch.randn(2, COUNT, 3), ltrb, maps)
    targets = [objects((4, 4, 40, 40), (30, 10, 90, 60)), objects()]
    assignment, losses = SoftLabelLoss()(head, LOCATIONS, targets)
    boxes = boxes_from_ltrb(POINTS, ltrb[0] * STRIDE[:, None])
    instance, quality = slow_assignment(boxes, head.class_logits[0], targets[0], 13)
    assert assignment.instance[0].tolist() == instance
    assert (assignment.instance[1] == -1).all()
    assert (assignment.labels[1] == 3).all()

    loss_cls, positives = 0.0, [i for i, j in enumerate(instance) if j >= 0]
    for i, scores in enumerate(head.class_logits.sigmoid().flatten(0, 1).tolist()):
        own = instance[i] if i < COUNT else -1
        for k, p in enumerate(scores):
            y = quality[i] if own >= 0 and k == targets[0].labels[own] else 0.0
            loss_cls -= abs(y - p) ** 2 * (y * math.log(p) + (1 - y) * math.log(1 - p))
    total = max(sum(quality), 1)
    giou = generalized_box_iou(boxes, targets[0].boxes)
    loss_box = sum(quality[i] * (1 - giou[i, instance[i]].item()) for i in positives)
    assert losses["loss_cls"].item() == pytest.approx(loss_cls / total, rel=1e-4)
    assert losses["loss_box"].item() == pytest.approx(2 * loss_box / total, rel=1e-4)
    # The assigned distances are those of the object's box.
    assigned = boxes_from_ltrb(POINTS, assignment.ltrb[0] * STRIDE[:, None])[positives]
    torch.testing.assert_close(assigned, targets[0].boxes[[instance[i] for i in positives]])
