"""RTMDet's assignment and losses against the rule read aloud."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import generalized_box_iou

from condseg.models import SoftLabelLoss
from condseg.ops.locations import pyramid_locations
from condseg.structures import HeadPredictions, Targets

SIZES, STRIDES = [(8, 12), (4, 6), (2, 3)], (8, 16, 32)
COUNT = sum(h * w for h, w in SIZES)


def objects(*boxes: tuple[float, float, float, float], classes: int = 3) -> Targets:
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    masks = torch.ones(len(boxes), 64, 96, dtype=torch.bool)
    return Targets(corners, torch.arange(len(boxes)) % classes, masks)


def iou(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return common / (sum(areas) - common)


def slow_cost(
    point: list[float], stride: float, box: list[float], logits: list[float], goal: list[float],
    label: int,
) -> float:  # fmt: skip
    quality, total = iou(box, goal), 0.0
    for k, logit in enumerate(logits):
        p = 1 / (1 + math.exp(-logit))
        y = quality if k == label else 0.0
        total += -(y * math.log(p) + (1 - y) * math.log(1 - p)) * (y - p) ** 2
    total -= 3 * math.log(quality + 1e-7)
    center = [(goal[0] + goal[2]) / 2, (goal[1] + goal[3]) / 2]
    return total + 10 ** (math.dist(point, center) / stride - 3)


def slow_assignment(
    points: torch.Tensor, stride: torch.Tensor, boxes: torch.Tensor, logits: torch.Tensor,
    target: Targets, topk: int,
) -> tuple[list[int], list[float]]:  # fmt: skip
    goals, labels = target.boxes.tolist(), target.labels.tolist()
    inside = [
        i
        for i, (x, y) in enumerate(points.tolist())
        if any(x1 < x < x2 and y1 < y < y2 for x1, y1, x2, y2 in goals)
    ]
    costs, overlaps = {}, {}
    for i in inside:
        row = points[i].tolist(), stride[i].item(), boxes[i].tolist(), logits[i].tolist()
        for j, (goal, label) in enumerate(zip(goals, labels, strict=True)):
            costs[i, j] = slow_cost(*row, goal, label)
            overlaps[i, j] = iou(row[2], goal)
    takers: dict[int, list[int]] = {i: [] for i in inside}
    for j in range(len(goals)):
        best = sorted((overlaps[i, j] for i in inside), reverse=True)[:topk]
        for i in sorted(inside, key=lambda i: costs[i, j])[: max(int(sum(best)), 1)]:
            takers[i].append(j)
    instance, quality = [-1] * len(points), [0.0] * len(points)
    for i, wanted in takers.items():
        if wanted:
            among = wanted if len(wanted) == 1 else range(len(goals))
            instance[i] = min(among, key=lambda j: costs[i, j])
            quality[i] = overlaps[i, instance[i]]
    return instance, quality


def places() -> tuple[torch.Tensor, torch.Tensor]:
    locations = pyramid_locations(SIZES, STRIDES)
    return locations.points, locations.stride


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.integers(1, 5), st.sampled_from([1, 4, 13]))
def test_assignment_against_the_rule_read_aloud(seed: int, count: int, topk: int) -> None:
    random = torch.Generator().manual_seed(seed)
    points, stride = places()
    corner = torch.rand(count, 2, generator=random) * torch.tensor([60.0, 40.0])
    size = 12 + torch.rand(count, 2, generator=random) * 40
    target = objects(*torch.cat((corner, corner + size), 1).tolist())
    # Predictions: one of the objects each, moved a little, so that the IoUs are high and alike.
    which = torch.randint(count, (COUNT,), generator=random)
    boxes = target.boxes[which] + 6 * torch.rand(COUNT, 4, generator=random)
    logits = 2 * torch.randn(COUNT, 3, generator=random)
    instance, quality = SoftLabelLoss(topk=topk).assign(points, stride, boxes, logits, target)
    expected, overlap = slow_assignment(points, stride, boxes, logits, target, topk)
    assert instance.tolist() == expected
    torch.testing.assert_close(quality, torch.tensor(overlap), rtol=1e-4, atol=1e-5)
    assert (instance >= 0).any()


def test_number_of_locations_follows_the_overlaps() -> None:
    points, stride = places()
    target = objects((4, 4, 60, 60))
    logits = torch.zeros(COUNT, 3)
    exact = target.boxes.expand(COUNT, 4)
    quarter = torch.tensor([4.0, 4, 32, 32]).expand(COUNT, 4)
    found = [
        SoftLabelLoss(topk).assign(points, stride, boxes, logits, target)[0]
        for topk, boxes in ((13, exact), (5, exact), (13, quarter), (13, exact * 0))
    ]
    # 13 IoUs of a quarter make 3. Boxes without area: still one.
    assert [int((instance == 0).sum()) for instance in found] == [13, 5, 3, 1]


def test_the_nearer_of_equals_wins() -> None:
    points, stride = places()
    target = objects((0, 0, 96, 64))
    boxes = target.boxes.expand(COUNT, 4)
    instance, _ = SoftLabelLoss(topk=1).assign(points, stride, boxes, torch.zeros(COUNT, 3), target)
    [chosen] = (instance == 0).nonzero().flatten().tolist()
    distance = (points - torch.tensor([48.0, 32.0])).norm(dim=1) / stride
    assert distance[chosen] == distance.min()


@pytest.mark.parametrize("boxes", [(), ((20.1, 20.1, 20.2, 20.2),), ((9, 9, 9, 9),)])
def test_objects_that_no_location_sees(
    boxes: tuple[tuple[float, float, float, float], ...],
) -> None:
    points, stride = places()
    predicted = torch.cat((points - 4, points + 4), dim=1)
    instance, quality = SoftLabelLoss().assign(
        points, stride, predicted, torch.zeros(COUNT, 3), objects(*boxes)
    )
    assert (instance == -1).all()
    assert (quality == 0).all()


def test_no_area_no_nan() -> None:
    """A box of no area beside one with: 0 / 0 is no overlap."""
    points, stride = places()
    target = objects((4, 4, 60, 60), (12, 12, 12, 12))
    predicted = torch.cat((points, points), dim=1)
    _, quality = SoftLabelLoss().assign(points, stride, predicted, torch.zeros(COUNT, 3), target)
    assert quality.isfinite().all()


def test_losses_against_their_formulas() -> None:
    torch.manual_seed(0)
    ltrb = torch.rand(2, COUNT, 4) * 3
    head = HeadPredictions(
        torch.randn(2, COUNT, 3), ltrb, [torch.zeros(2, 1, *size) for size in SIZES]
    )
    targets = [objects((4, 4, 40, 40), (30, 10, 90, 60)), objects()]
    assignment, losses = SoftLabelLoss()(head, pyramid_locations(SIZES, STRIDES), targets)
    points, stride = places()
    boxes = torch.cat((points, points), 1) + ltrb[0] * stride[:, None] * torch.tensor(
        [-1, -1, 1, 1]
    )
    instance, quality = slow_assignment(points, stride, boxes, head.class_logits[0], targets[0], 13)
    assert assignment.instance[0].tolist() == instance
    assert (assignment.instance[1] == -1).all()
    assert (assignment.labels[1] == 3).all()

    classes, places_of = 0.0, [i for i, j in enumerate(instance) if j >= 0]
    for i, logits in enumerate(head.class_logits.sigmoid().flatten(0, 1).tolist()):
        own = instance[i] if i < COUNT else -1
        for k, p in enumerate(logits):
            y = quality[i] if own >= 0 and k == targets[0].labels[own] else 0.0
            classes -= abs(y - p) ** 2 * (y * math.log(p) + (1 - y) * math.log(1 - p))
    total = max(sum(quality), 1)
    giou = generalized_box_iou(boxes, targets[0].boxes)
    box = sum(quality[i] * (1 - giou[i, instance[i]].item()) for i in places_of)
    assert losses["loss_cls"].item() == pytest.approx(classes / total, rel=1e-4)
    assert losses["loss_box"].item() == pytest.approx(2 * box / total, rel=1e-4)
    # What was assigned, as distances: the object's box again.
    own_boxes = torch.cat((points, points), 1) + assignment.ltrb[0] * stride[:, None] * (
        torch.tensor([-1, -1, 1, 1])
    )
    for i in places_of:
        torch.testing.assert_close(own_boxes[i], targets[0].boxes[instance[i]])
